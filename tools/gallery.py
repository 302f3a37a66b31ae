"""Make the film and the sound of the gallery, which no training is needed for.

Writes `docs/pictures/frames-demo.gif` and `docs/_static/sounds/demo-tune.wav`.

    python tools/gallery.py
"""

from __future__ import annotations

from pathlib import Path

import pretty_midi

from pyro_seq.frames.data.demo import moving_squares
from pyro_seq.frames.show.render import as_rgb, gif_bytes
from pyro_seq.music import synthesise
from pyro_seq.music.render.audio import wav_bytes
from pyro_seq.programs.plotting import enlarged, side_by_side

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
TUNE, SECONDS = ROOT / "pyro_seq" / "music" / "data" / "demo" / "03-a-minor.mid", 8.0


def main() -> None:
    """Write three films of the demo side by side, and the beginning of a bundled tune."""
    films = [enlarged(as_rgb(film, "binary")) for film in moving_squares(3).films]
    (DOCS / "pictures" / "frames-demo.gif").write_bytes(gif_bytes(side_by_side(films)))
    sound = synthesise(pretty_midi.PrettyMIDI(str(TUNE)), SECONDS)
    (DOCS / "_static" / "sounds").mkdir(parents=True, exist_ok=True)
    (DOCS / "_static" / "sounds" / "demo-tune.wav").write_bytes(wav_bytes(sound))


if __name__ == "__main__":
    main()
