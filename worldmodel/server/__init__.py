"""Serving worlds to a browser: messages, one player's session, start images, and the HTTP and WebSocket routes.

Read in this order: `protocol` (what travels), `controls` and `pacing` (small rules), `session` (one person walking),
`lobby` (who may walk, on `worldmodel.engine`), `uploads`, `tickets` and `metrics` (small parts), `app` (routes), `run` (start and stop).
`static/` is the page's own JavaScript and style.
"""
