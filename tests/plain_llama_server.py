"""llama-server as the wheel carries it, and nothing of ours: `plain_llama_server.py MODEL CTX THREADS [off]`.

`off` is of flash attention. Prints its address, and ends with its stdin.
"""

import sys

import xllamacpp


def main() -> None:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = sys.argv[1]
    parameters.hostnames, parameters.port = ["127.0.0.1"], 0
    parameters.n_ctx, parameters.n_parallel = int(sys.argv[2]), 1
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = int(sys.argv[3])
    if sys.argv[4:] == ["off"]:
        parameters.flash_attn_type = 0
    server = xllamacpp.Server(parameters)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
