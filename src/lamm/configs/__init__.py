"""Configurations that the package ships."""
