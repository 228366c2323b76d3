# The rendezvous server: Python's standard library and this package's own files, nothing installed.
#
#   docker build -f docker/rendezvous.Dockerfile -t perseid-rendezvous .
#   docker run -p 10000:10000 -p 10001:10001 -v "$PWD/secret:/run/secret:ro" \
#       --ulimit nofile=65536 perseid-rendezvous --key-file /run/secret --log json
FROM python:3.11-slim

WORKDIR /app
COPY src/perseid/__init__.py src/perseid/durations.py src/perseid/errors.py src/perseid/lazy.py src/perseid/linux.py perseid/
COPY src/perseid/rendezvous perseid/rendezvous
RUN python -m compileall -q perseid && useradd --system --no-create-home rendezvous

USER rendezvous
EXPOSE 10000 10001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=2s CMD ["python", "-c", \
    "import urllib.request; urllib.request.urlopen('http://127.0.0.1:10001/healthz', timeout=2)"]
# `exec` form: the server is process 1 and gets SIGTERM itself.
ENTRYPOINT ["python", "-m", "perseid.rendezvous", "serve"]
CMD ["--open", "--log", "json"]
