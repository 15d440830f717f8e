"""An object whose pickle does something when it is opened."""


class Bomb:
    """Unpickling this writes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")
