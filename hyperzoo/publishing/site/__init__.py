"""`hyperzoo site`: one page with all weights and a demo that runs one of them in the browser."""

from hyperzoo.publishing.site.page import write as write
