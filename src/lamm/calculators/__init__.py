"""A trained potential inside other programs."""
