"""The gallery of the lectures as one page: every script beside this one, with its formula and its pictures.

Run it with: make docs, or python docs/gallery docs/gallery.html
"""

import sys
from pathlib import Path

import attention
import cliff
import parity
import shapes
import vanishing
import worked

from recurra.probe.page import page

SCRIPTS = (shapes, worked, vanishing, cliff, parity, attention)

if __name__ == "__main__":
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent / "gallery.html"
    found = []
    for script in SCRIPTS:
        print(f"{script.__name__} ...", flush=True)
        found += script.sections()
    out.write_text(page("The lectures, in pictures", found), encoding="utf-8")
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")
