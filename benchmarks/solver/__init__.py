"""Whether the solver is right, in campaigns too long for the tests."""
