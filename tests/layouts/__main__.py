"""Write docs/layouts.md anew: `python -m tests.layouts`."""

from tests.layouts.page import PAGE, page

PAGE.write_text(page(), encoding="utf-8")
