"""What a trained potential is worth: predictions, errors, learning curves, figures and reports."""
