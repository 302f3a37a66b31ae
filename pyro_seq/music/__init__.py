"""Music: MIDI files as piano rolls, models of them, samples, figures and reports."""
