"""Knowledge: the bundled library and, beneath everything, the errors."""
