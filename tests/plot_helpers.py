"""What is written in a picture, and whether a file is one."""


def texts(figure):
    """Everything that is written in a picture that is not empty."""
    return {
        text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text") and artist.get_visible())
    } - {""}


def is_png(path):
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 5_000
