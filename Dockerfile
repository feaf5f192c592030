# UNTESTED: written where there was neither Docker nor a GPU. Build and run:
#   docker build -t marconi-ext . && docker run --gpus all --ipc host -p 30000:30000 marconi-ext \
#     --model-path nvidia/Nemotron-H-8B-Base-8K --host 0.0.0.0 --enable-marconi
FROM lmsysorg/sglang:v0.5.23

COPY . /opt/marconi-ext
RUN pip install --no-cache-dir /opt/marconi-ext && marconi --version

ENTRYPOINT ["python3", "-m", "sglang.launch_server"]
