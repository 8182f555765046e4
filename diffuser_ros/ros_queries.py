"""One-off questions to a running ROS system: call a service, list topics. Used by `runner` where there is no `ros2`."""

from __future__ import annotations

import array
import contextlib
import importlib
import re
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import rclpy
import yaml
from rclpy.client import Client
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node

from diffuser_core.config import ConfigError, parse_yaml

SERVICE_WAIT_S = 10.0  # discovery takes up to a few seconds
TOPICS_WAIT_S = 3.0


class QueryError(Exception):
    """The question cannot be asked or answered; the message is one sentence for the user."""


def call(service: str, type_name: str, request: str) -> int:
    """Call a service and print its answer as YAML.

    Args:
        service: its name.
        type_name: its type as package/srv/Name.
        request: the request's fields as YAML; those left out keep their defaults.

    Returns:
        1 if the answer has a field success that is false, else 0.

    Raises:
        QueryError: unknown type, a request that does not fit the type, or no such service within SERVICE_WAIT_S.
    """
    service_type = _service_type(type_name)
    try:
        values = parse_yaml(request)
    except ConfigError as error:
        raise QueryError(f'the request is not YAML: {error}') from None
    message = fill(service_type.Request, {} if values is None else values, 'request')
    with _node() as node:
        client: Client = node.create_client(service_type, service)
        if not client.wait_for_service(timeout_sec=SERVICE_WAIT_S):
            raise QueryError(f'no service {client.srv_name} was found within {SERVICE_WAIT_S:g} s')
        future = client.call_async(message)
        while not future.done():
            rclpy.spin_until_future_complete(node, future, timeout_sec=1.0)
            if not future.done() and not client.service_is_ready():
                raise QueryError(f'service {client.srv_name} went away before it answered')
        response = future.result()
    print(yaml.safe_dump(plain(response), sort_keys=False, allow_unicode=True), end='')
    return int(getattr(response, 'success', True) is False)


def print_topics() -> None:
    """Print every topic that another node publishes or subscribes to, with its types."""
    with _node() as node:
        end = time.monotonic() + SERVICE_WAIT_S
        while True:
            # Others are found one after another, so a list that is not empty may still be incomplete; an empty one may be early.
            time.sleep(TOPICS_WAIT_S)
            found = _topics_of_others(node)
            if found or time.monotonic() > end:
                break
        for name, types in found:
            print(f'{name} [{", ".join(types)}]')


def _topics_of_others(node: Node) -> list[tuple[str, list[str]]]:
    return [(name, types) for name, types in sorted(node.get_topic_names_and_types())
            if any(end.node_name != node.get_name()
                   for end in [*node.get_publishers_info_by_topic(name), *node.get_subscriptions_info_by_topic(name)])]


@contextlib.contextmanager
def _node() -> Iterator[Node]:
    with rclpy.init():
        node = rclpy.create_node('diffuser_ros_query', start_parameter_services=False, enable_rosout=False)
        try:
            yield node
        except ExternalShutdownException:
            raise KeyboardInterrupt from None
        finally:
            node.destroy_node()


def _service_type(name: str) -> Any:
    package, _, short = name.partition('/srv/')
    if not re.fullmatch(r'\w+', package) or not re.fullmatch(r'\w+', short):
        raise QueryError(f'a service type is written package/srv/Name, not {name!r}')
    try:
        return getattr(importlib.import_module(f'{package}.srv'), short)
    except ImportError:
        raise QueryError(f'package {package!r} has no services, or is not installed') from None
    except AttributeError:
        raise QueryError(f'package {package!r} has no service {short!r}') from None


def fill(message_type: type, values: Any, where: str) -> Any:
    """A message of that type with the given fields set.

    Args:
        message_type: a generated message class.
        values: fields by name; nested messages as dictionaries.
        where: what to call the message in errors.

    Raises:
        QueryError: an unknown field, or a value of the wrong type.
    """
    message = message_type(check_fields=True)
    types = message.get_fields_and_field_types()
    if not isinstance(values, dict):
        raise QueryError(f'{where} must be given as field: value pairs, not {values!r}')
    for name, value in values.items():
        if name not in types:
            raise QueryError(f'{where} has no field {name!r}; it has: {", ".join(types) or "no fields"}')
        try:
            setattr(message, name, _field_value(types[name], value, f'{where}.{name}'))
        except AssertionError:
            raise QueryError(f'{where}.{name} must be of type {types[name]}, not {value!r}') from None
    return message


def _field_value(type_name: str, value: Any, where: str) -> Any:
    """`value` with dictionaries made messages and, for floating-point fields, whole numbers made floats."""
    nested = re.search(r'(\w+)/(\w+)', type_name)
    if nested:
        message_type = getattr(importlib.import_module(f'{nested[1]}.msg'), nested[2])
        if type_name == nested[0]:
            return fill(message_type, value, where)
        return [fill(message_type, one, f'{where}[{i}]') for i, one in enumerate(value)] \
            if isinstance(value, list) else value
    if re.search('float|double', type_name):
        one_float = isinstance(value, int) and not isinstance(value, bool)
        if isinstance(value, list):
            return [_field_value('double', one, where) for one in value]
        return float(value) if one_float else value
    return value


def plain(value: Any) -> Any:
    """A message, or a value of one of its fields, as what YAML can hold."""
    if hasattr(value, 'get_fields_and_field_types'):
        return {name: plain(getattr(value, name)) for name in value.get_fields_and_field_types()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, (array.array, np.ndarray)):
        return value.tolist()
    return list(value) if isinstance(value, bytes) else value
