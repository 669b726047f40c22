"""From files of many formats to structures with labels, masks, splits and noise (Sec. 3.1, 3.3)."""
