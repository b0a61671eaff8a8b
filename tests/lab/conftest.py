"""The cluster that tests share: they build on each other, in the order of their files."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ..support.labs import OwnLab, build
from .cluster import HOSTS, KEPT, NEW, OLD, VERIFIED, Cluster


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Boot the hosts; nothing is deployed."""
    lab = OwnLab(tmp_path_factory.mktemp("lab"), HOSTS)
    try:
        cluster = Cluster(lab, tmp_path_factory.mktemp("rollout"))
        cluster.boot()
        targets = sorted(set(cluster.targets.values()))
        for version in (OLD, NEW):
            zipapp = build(tmp_path_factory.mktemp("source"), version, *targets)
            cluster.zipapps[version] = zipapp.with_name(f"wsqueue-{version}-{{{{target}}}}.pyz")
        cluster.inventory("good")
        cluster.play("ansible/playbooks/ca.yml", "-vvv", "--diff")
        yield cluster
    finally:
        lab.down()


@pytest.fixture(scope="session")
def deployed(cluster: Cluster) -> Cluster:
    """Deploy for the first time, with Ansible's most detailed output."""
    output = cluster.play("site.yml", "-vvv", "--diff")
    assert VERIFIED.search(output), output[-5000:]
    for topic in KEPT:
        cluster.lab.ssh("demo1", f"wsqueue publish {topic} 'this is {topic}'")
    return cluster
