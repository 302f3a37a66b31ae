"""MIDI files and piano rolls: reading, writing, finding, caching."""
