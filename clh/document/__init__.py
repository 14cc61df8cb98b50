"""Reading a note: sections, sentences and the assertion status of a mention."""
