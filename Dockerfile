# A server of models: docker build -t ai-infer . && docker run -p 8000:8000 -v ./shop:/srv/shop ai-infer 'digits=shop.models:classifier'
#
# For a GPU, with the base of your driver and torch's wheels for CUDA, run with --gpus all:
#   docker build --build-arg BASE=python:3.11 --build-arg TORCH_INDEX=https://pypi.org/simple -t ai-infer:cuda .
ARG BASE=python:3.11-slim

FROM ${BASE} AS wheels
WORKDIR /source
RUN python3 -m pip install --quiet hatch
COPY . .
RUN for folder in packages/ai-model packages/ai-infer; do (cd "$folder" && hatch build --target wheel /wheels); done

FROM ${BASE}
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN python3 -m pip install --quiet --index-url "$TORCH_INDEX" torch==2.13.0
COPY --from=wheels /wheels /wheels
COPY .ci/install_server /tmp/install_server
RUN bash /tmp/install_server python3 /wheels && rm -r /wheels /tmp/install_server
RUN useradd --create-home server
USER server
WORKDIR /srv
EXPOSE 8000
# SIGTERM, as docker stop sends it, lets requests on their way finish: give it longer than --drain.
ENTRYPOINT ["ai-infer", "serve", "--host", "0.0.0.0"]
CMD ["--help"]
