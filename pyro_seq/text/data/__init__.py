"""The text that comes with pyro_seq, for a first run without any data: `fable.txt`, made by
`tools/make_demo_text.py`.
"""
