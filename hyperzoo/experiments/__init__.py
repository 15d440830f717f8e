"""From a recipe to run folders: the only room where models, data, methods and the engine meet."""

import sys

from hyperzoo.errors import PlatformError

if sys.platform == "win32":
    raise PlatformError(
        "training and publishing need the file locks of Linux or macOS; on Windows, install hyperzoo in WSL"
    )
