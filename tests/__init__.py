"""Tests mirror the packages."""

import pytest

pytest.register_assert_rewrite("tests.machine")
