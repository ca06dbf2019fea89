"""Serving worlds to a browser: messages, one visitor's session, start images, and the HTTP and WebSocket routes.

Read in this order: `protocol` (what travels), `controls`, `pacing` and `adapt` (small rules), `session` (one person walking) with `origin`
(where a world begins), `branches`, `timeline` and `record` (what was, and going back), `lobby` (who may walk, on `worldmodel.engine`),
`conversation` (a connection from hello to close) and `http_stream` (the same without a WebSocket), `uploads`, `files`, `exports`, `tickets`
and `metrics` (small parts), `settings`, `app` (routes), `run` (start and stop). `config`, `logs` and `serve` are ``worldmodel serve``,
`ray_app` is several of it. `static/` is the page's own JavaScript and style.
"""
