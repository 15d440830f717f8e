"""`hyperzoo site`: all weights on one page, which also runs one of them."""

from hyperzoo.publishing.site.page import write as write
