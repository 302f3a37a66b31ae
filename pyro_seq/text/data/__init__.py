"""The bundled text `fable.txt`, made by `tools/make_demo_text.py`."""
