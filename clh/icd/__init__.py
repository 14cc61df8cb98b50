"""The ICD-10-CM code system: the Tabular List and the Alphabetic Index."""
