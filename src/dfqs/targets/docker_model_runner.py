"""Docker Model Runner: `docker model package` copies the file (all shards, given the first) into its store.

Source: docs.docker.com/reference/cli/docker/model/package.
"""

from dfqs.report.usage import UsageLine
from dfqs.targets.contract import Command, Endpoint, Hub, LocalModel, Rendering, Site, Space, Target, require_text


class DockerModelRunner(Target):
    """Docker's runner of models."""

    name = "docker-model-runner"
    title = "Docker Model Runner"
    takes = "copy"
    programs = ("docker",)
    probe = ("docker", "model", "version")
    names = "llama.cpp"
    dialect_evidence = "it carries a llama.cpp; of which build, only it can tell"
    source = "docs.docker.com/reference/cli/docker/model/package"

    def space(self, model: LocalModel, site: Site) -> Space | None:
        # Its store is in Docker's virtual machine or below this; on Linux /var/lib/docker has the volumes.
        store = site.path("/var/lib/docker") if site.system == "linux" else site.home
        return Space(store, model.file_bytes, model.file_bytes)

    def render(self, model: LocalModel, site: Site, endpoint: Endpoint) -> Rendering:
        # A reference of OCI: lower case.
        reference = f"{model.identifier.lower()}:latest"
        package = ("docker", "model", "package", "--gguf", require_text(model.path, "the model"))
        return Rendering(
            register=(
                Command(
                    "put a copy into its store",
                    (*package, "--context-size", str(model.context_tokens), reference),
                    effect="register",
                    undone_by=("docker", "model", "rm", reference),
                ),
            ),
            use=(Command("talk with it", ("docker", "model", "run", reference)),),
            listing=Command("what it has", ("docker", "model", "list"), effect="list"),
            listed_as=reference.removesuffix(":latest"),
            notes=("its API is http://localhost:12434/engines/v1, where host access is switched on",),
        )

    def hub_usage(self, hub: Hub) -> tuple[UsageLine, ...]:
        return (self.usage_line("", "bash", f"docker model run hf.co/{hub.tagged}"),)
