"""The command line: one thin module per verb, which parses and then calls the library."""
