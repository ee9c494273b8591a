# hermes-deploy on NVIDIA's Triton image. The server comes from there, all that is ours from scripts/container-setup, which
# the tests run on a bare machine; the image itself has not been built where this was written.
#
#   docker buildx imagetools inspect nvcr.io/nvidia/tritonserver:25.06-py3      # prints the digest
#   docker build --build-arg TRITON_DIGEST=sha256:... --tag hermes-deploy:0.1.0 .
#   docker build --build-arg TRITON_DIGEST=sha256:... --build-arg EXTRAS=container-cuda,sign --tag hermes-deploy:0.1.0-cuda .
#
# The digest decides, the tag is for people. It has no default: an image is what was looked at, not what a tag is today.
# Tags from 24.11 on have Python 3.12, which is needed.
ARG TRITON_TAG=25.06-py3
ARG TRITON_DIGEST

FROM nvcr.io/nvidia/tritonserver:${TRITON_TAG}@${TRITON_DIGEST} AS install
ARG EXTRAS=container,sign
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE ./
COPY scripts/container-setup scripts/environment.sh scripts/
COPY hermes_deploy hermes_deploy
RUN scripts/container-setup /opt/hermes-deploy "$EXTRAS"

FROM nvcr.io/nvidia/tritonserver:${TRITON_TAG}@${TRITON_DIGEST}
COPY --from=install /opt/hermes-deploy /opt/hermes-deploy
# the run folder of serve goes to TMPDIR; nothing else is written
ENV PATH=/opt/hermes-deploy/bin:${PATH} TMPDIR=/tmp HOME=/tmp PYTHONDONTWRITEBYTECODE=1
# numbers, so that Kubernetes can see that it is not root
USER 1000:1000
EXPOSE 8000 8001 8002 8003 8004
# serve itself is the first process: it owns the health port and hears SIGTERM
ENTRYPOINT ["/opt/hermes-deploy/bin/hermes-deploy"]
CMD ["serve", "/artifact", "--host", "0.0.0.0"]
