"""Drives a real meshd for the conformance cases recorded from Envoy.

Each case gets a mesh of one host on loopback: its services are registered through `services.d` (those that are no mesh
names through ServiceEntry), its rules are applied with `meshctl apply`, its service ports are explicit listeners whose
`workload` is the case's client. Where a case is a `gateway`, the host has its labels and opens its servers instead.
"""
import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile

import yaml

MESHD = os.environ["MESHD"]
MESHCTL = os.environ["MESHCTL"]
SUFFIX = ".svc.cluster.local"
MESH_CONFIG = """
apiVersion: mesh.istio.io/v1alpha1
kind: MeshConfig
metadata: {name: default, namespace: istio-system}
spec:
  outboundTrafficPolicy: {mode: REGISTRY_ONLY}
"""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def toml(value):
    """A TOML value; strings and numbers of JSON are TOML's too."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(str(k))} = {toml(v)}" for k, v in value.items()) + " }"
    return json.dumps(value if isinstance(value, (int, float)) else str(value))


class MeshdDriver:
    name = "meshd"

    async def start(self, case):
        try:
            return await self.begin(case)
        except BaseException:
            await self.stop()
            raise

    async def begin(self, case):
        self.folder = tempfile.mkdtemp(prefix="meshd-case-")
        os.mkdir(self.folder + "/services.d")
        self.socket = self.folder + "/meshd.sock"
        listen = {port: free_port() for port in case.listen_ports}
        self.write("meshd.toml", self.config(case, listen))
        self.write("services.d/case.toml", self.services(case))
        self.log = open(self.folder + "/log", "wb")
        await self.command(MESHD, "init", "--config", self.folder + "/meshd.toml")
        self.process = subprocess.Popen(
            [MESHD, "run", "--config", self.folder + "/meshd.toml"], stdout=self.log, stderr=self.log)
        await self.until(lambda: self.meshctl("version"), "meshd answers")
        await self.until(lambda: self.registered(case), "the services are registered")
        await self.keep_secrets(case)
        # A gateway opens the ports that its rules name.
        own = self.at_ports(case.rules(), listen) if case.services.get("gateway") else case.rules()
        rules = [text for text in (MESH_CONFIG, self.service_entries(case), own) if text.strip()]
        self.write("rules.yaml", "\n---\n".join(rules))
        await self.meshctl("apply", self.folder + "/rules.yaml", "--timeout", "10s")
        if case.services.get("gateway"):
            await self.until(lambda: self.opened(case, listen), "the gateway opens its ports")
        return listen

    async def keep_secrets(self, case):
        for name, parts in (case.services.get("secrets") or {}).items():
            files = []
            if "cert" in parts:
                files += ["--cert", f"{case.certs}/{parts['cert']}.crt", "--key", f"{case.certs}/{parts['cert']}.key"]
            if parts.get("roots"):
                files += ["--ca", f"{case.certs}/ca.crt"]
            await self.meshctl("secret", "create", name, *files)

    def at_ports(self, rules, listen):
        return re.sub(r"\b[0-9]{5}\b", lambda m: str(listen.get(int(m.group()), m.group())), rules)

    async def opened(self, case, listen):
        for port in case.services["extra_listen_ports"]:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", listen[port])
            except OSError as error:
                raise RuntimeError(str(error))
            writer.close()

    async def stop(self):
        if getattr(self, "process", None):
            self.process.send_signal(signal.SIGKILL)
            await asyncio.to_thread(self.process.wait)
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def config(self, case, listen):
        client = case.services.get("client") or {}
        locality = client.get("locality", "")
        workload = {"namespace": client.get("namespace", "default"), "labels": client.get("labels") or {}}
        lines = [
            "[host]", 'name = "case"', f"data = {toml(self.folder + '/data')}", f"locality = {toml(locality)}",
            "[listen]", f'mesh = "127.0.0.1:{free_port()}"', f"socket = {toml(self.socket)}",
            'outbound = []', 'inbound = []', 'admin = ""', 'metrics = []', 'dns = []', 'http_proxy = ""',
            "[intercept]", 'mode = "off"', "[proxy]", "workers = 1",
            "[services]", f"directory = {toml(self.folder + '/services.d')}",
            "[log]", 'level = "info"',
        ]
        if case.services.get("gateway"):
            lines[lines.index("[listen]"):0] = [f"labels = {toml(case.services['gateway']['labels'])}"]
            return "\n".join(lines) + "\n"
        for port, local in listen.items():
            lines += ["[[listener]]", f'address = "127.0.0.1:{local}"', f"service_port = {port}",
                      f"workload = {toml_workload(workload)}"]
        return "\n".join(lines) + "\n"

    def services(self, case):
        lines = []
        for service in case.services["services"]:
            if not service["host"].endswith(SUFFIX):
                continue
            name, namespace = service["host"][:-len(SUFFIX)].split(".")
            for instance in service.get("instances", []):
                lines += ["[[service]]", f"id = {toml(instance['name'])}", f"name = {toml(name)}",
                          f"namespace = {toml(namespace)}", f"labels = {toml(instance.get('labels') or {})}"]
                if "locality" in instance:
                    lines.append(f"locality = {toml(instance['locality'])}")
                if "weight" in instance:
                    lines.append(f"weight = {instance['weight']}")
                for port in service["ports"]:
                    target = case.inst_ports.get(f"{service['host']}|{port['number']}|{instance['name']}")
                    if target is not None:
                        lines += ["[[service.port]]", f"number = {port['number']}", f"name = {toml(port['name'])}",
                                  f"protocol = {toml(port['protocol'].lower())}", f'target = "127.0.0.1:{target}"']
        return "\n".join(lines) + "\n"

    def service_entries(self, case):
        """Services that are no mesh names, unless the case's rules declare them."""
        declared = set()
        for document in yaml.safe_load_all(case.rules()):
            if document and document.get("kind") == "ServiceEntry":
                declared.update(document["spec"]["hosts"])
        entries = []
        for service in case.services["services"]:
            if service["host"].endswith(SUFFIX) or service["host"] in declared:
                continue
            endpoints = []
            for instance in service.get("instances", []):
                ports = {}
                for port in service["ports"]:
                    target = case.inst_ports.get(f"{service['host']}|{port['number']}|{instance['name']}")
                    if target is not None:
                        ports[port["name"]] = target
                endpoint = {"address": "127.0.0.1", "ports": ports, "labels": instance.get("labels") or {}}
                for key in ("locality", "weight"):
                    if key in instance:
                        endpoint[key] = instance[key]
                endpoints.append(endpoint)
            spec = {"hosts": [service["host"]], "location": "MESH_EXTERNAL", "resolution": "STATIC",
                    "ports": [{k: p[k] for k in ("number", "name", "protocol")} for p in service["ports"]],
                    "endpoints": endpoints}
            entries.append({"apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
                            "metadata": {"name": service["host"].replace("*", "any").replace(".", "-")}, "spec": spec})
        return yaml.safe_dump_all(entries) if entries else ""

    async def registered(self, case):
        wanted = sum(len(s.get("instances", [])) for s in case.services["services"] if s["host"].endswith(SUFFIX))
        listed = json.loads(await self.meshctl("service", "list", "-o", "json"))
        found = sum(len(item["instances"]) for item in listed["items"])
        if found < wanted:
            raise RuntimeError(f"{found} of {wanted} instances")

    async def meshctl(self, *arguments):
        return await self.command(MESHCTL, "--socket", self.socket, *arguments)

    async def command(self, *arguments):
        process = await asyncio.create_subprocess_exec(
            *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
        out, err = await process.communicate()
        if process.returncode != 0:
            raise RuntimeError(f"{arguments[1:]}: exit {process.returncode}: {err.decode()}{out.decode()}")
        return out.decode()

    async def until(self, attempt, what):
        last = None
        for _ in range(250):
            try:
                return await attempt()
            except RuntimeError as error:
                last = error
            if self.process.poll() is not None:
                break
            await asyncio.sleep(0.02)
        log = open(self.folder + "/log", errors="replace").read()[-3000:]
        raise RuntimeError(f"waited until {what}: {last}\n{log}")

    def write(self, name, text):
        with open(f"{self.folder}/{name}", "w") as file:
            file.write(text)


def toml_workload(workload):
    return f"{{ namespace = {toml(workload['namespace'])}, labels = {toml(workload['labels'])} }}"
