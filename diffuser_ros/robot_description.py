"""Limits of joints out of a robot description (URDF)."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence

import numpy as np

from diffuser_ros.safety import Limits

__all__ = ['DescriptionError', 'limits_from_urdf']

TURNING = ('revolute', 'continuous')


class DescriptionError(ValueError):
    """A robot description that no limits can be taken from; the message is one sentence that says what is wrong."""


class _Plain(ElementTree.TreeBuilder):
    """Builds elements, and refuses a document type: it may define entities that unfold without end, and no URDF needs one."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise DescriptionError('the robot description has a document type (<!DOCTYPE ...>), which is refused')


def limits_from_urdf(text: str, names: Sequence[str], *, jump: float, acceleration: float = math.inf,
                     velocity: float = math.inf) -> Limits:
    """The limits of the joints `names`, in this order, that the URDF `text` (after xacro) gives.

    Positions and velocity are `lower`, `upper` and `velocity` of a joint's `<limit>`. A continuous joint has no positions' limits
    and need not have a velocity either. The acceleration is the smaller of `acceleration` and `deceleration` in `<limit>` (URDF
    1.2). Soft limits (`<safety_controller>`) are not looked at.

    jump          see `Limits` [rad]
    acceleration  of joints that the description gives none for [rad/s^2]; infinity for none
    velocity      no joint shall be faster than this, whatever the description says [rad/s]

    DescriptionError for damaged XML, a document type, a joint that is missing, described twice, does not turn, or follows another
    one (`<mimic>`), and limits that are missing, not finite, or upside down.
    """
    try:
        parser = ElementTree.XMLParser(target=_Plain())
        parser.feed(text)
        robot = parser.close()
    except ElementTree.ParseError as error:
        raise DescriptionError(f'the robot description is not valid XML: {error}') from error
    if robot.tag != 'robot':
        raise DescriptionError(f'a robot description begins with <robot>, this one with <{robot.tag}>')
    repeated = sorted({name for name in names if list(names).count(name) > 1})
    if repeated:
        raise DescriptionError(f'limits of {", ".join(repeated)} are asked for more than once')
    joints: dict[str, list[ElementTree.Element]] = {}
    for joint in robot.findall('joint'):  # those of <transmission> and <ros2_control> lie deeper
        joints.setdefault(joint.get('name', ''), []).append(joint)
    missing = [name for name in names if name not in joints]
    if missing:
        there = ', '.join(name for name, found in joints.items() if found[0].get('type') in TURNING)
        raise DescriptionError(f'the robot description lacks the joint {", ".join(missing)}; joints that turn: {there or "none"}')
    for name in names:
        if len(joints[name]) > 1:
            raise DescriptionError(f'the robot description has {len(joints[name])} joints of the name {name}')
    rows = [_limits_of(joints[name][0], name, acceleration, velocity) for name in names]
    lower, upper, fastest, most = np.array(rows, dtype=np.float64).reshape(-1, 4).T
    try:
        return Limits(tuple(names), lower, upper, fastest, most, jump)
    except ValueError as error:
        raise DescriptionError(f'the robot description: {error}') from error


def _limits_of(joint: ElementTree.Element, name: str, acceleration: float, velocity: float) -> tuple[float, float, float, float]:
    """Lower, upper, velocity and acceleration of one joint."""
    kind = joint.get('type')
    if kind not in TURNING:
        raise DescriptionError(
            f'the joint {name} is {kind or "of no type"}; only {" and ".join(TURNING)} joints can be commanded')
    mimic = joint.find('mimic')
    if mimic is not None:
        raise DescriptionError(f'the joint {name} follows {mimic.get("joint", "another one")} (<mimic>) and cannot be commanded')
    limit = joint.find('limit')
    if limit is None and kind == 'revolute':
        raise DescriptionError(f'the joint {name} is revolute and has no <limit>')
    given = {} if limit is None else {
        key: _number(limit.attrib[key], name, key)
        for key in ('lower', 'upper', 'velocity', 'acceleration', 'deceleration') if key in limit.attrib}
    if kind == 'revolute':
        if 'velocity' not in given:
            raise DescriptionError(f'the <limit> of the joint {name} gives no velocity')
        lower, upper = given.get('lower', 0.0), given.get('upper', 0.0)  # 0 is what URDF says where one is left out
    else:
        lower, upper = -math.inf, math.inf
    fastest = min(given.get('velocity', math.inf), velocity)
    if math.isinf(fastest):
        raise DescriptionError(f'the joint {name} is {kind} without a velocity limit, and no other limit is set')
    most = min([given[key] for key in ('acceleration', 'deceleration') if key in given], default=acceleration)
    return lower, upper, fastest, most


def _number(value: str, name: str, key: str) -> float:
    """A finite number."""
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DescriptionError(f'the {key} limit of the joint {name} is {value!r}, not a finite number')
    return number
