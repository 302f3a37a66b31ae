"""Music: MIDI files as piano rolls, models of them, samples to hear and see, figures and
reports.
"""
