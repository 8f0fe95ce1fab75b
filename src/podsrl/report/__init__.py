"""What a comparison shows: speed-ups with intervals, as a page, figures and JSON."""
