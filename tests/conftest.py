import os

import setuptools  # noqa: F401 (before something takes the standard library's distutils; torch.compile imports it late)

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

pytest_plugins = ["browsing"]
