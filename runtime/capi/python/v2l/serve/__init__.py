"""A server of videos in the dialect ``/v1/videos``: jobs in SQLite or Redis, an engine directory behind them, FastAPI in front.

``v2l serve ENGINES`` starts it; :func:`create_app` gives the application to a server of your own, and :mod:`v2l.serve.cluster` to Ray Serve.
Needs the extra ``v2l[serve]``.
"""

from .app import create_app
from .config import Config

__all__ = ["Config", "create_app"]
