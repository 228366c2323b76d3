"""IAM policies for people: one for those who deploy, and one for those who only run.

https://docs.aws.amazon.com/service-authorization/latest/reference/reference_policies_actions-resources-contextkeys.html
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Policy = dict[str, Any]


@dataclass(frozen=True)
class _Rule:
    """One statement of a policy; ``{…}`` stands for names of the stack, the account and the
    region."""

    sid: str
    actions: str
    """Actions, separated by spaces; an action without a service has that of the one before it."""
    resources: str
    """Resources, separated by spaces: ARNs, ``*``, or ``buckets`` and ``objects``, which stand for
    all of the stack's."""
    condition: tuple[str, str, str] | None = None
    """Operator, key and values (separated by spaces)."""
    effect: str = "Allow"


_TASKS = _Rule("ListTasks", "ecs:ListTasks", "*",
               ("ArnEquals", "ecs:cluster", "arn:aws:ecs:{here}:cluster/{cluster}"))  # fmt: skip
_ECS_ROLE = "arn:aws:iam::{account}:role/aws-service-role/ecs.amazonaws.com/AWSServiceRoleForECS"
_WHERE = _Rule("Where", "s3:GetBucketLocation GetEncryptionConfiguration", "buckets")

_RUNNER = (
    _Rule("Runs", "states:StartExecution ListExecutions DescribeStateMachine",
          "arn:aws:states:{here}:stateMachine:{name}-run"),
    _Rule("OneRun", "states:DescribeExecution GetExecutionHistory StopExecution ListMapRuns "
          "DescribeMapRun RedriveExecution",
          "arn:aws:states:{here}:execution:{name}-run:* "
          "arn:aws:states:{here}:execution:{name}-run/* arn:aws:states:{here}:mapRun:{name}-run/*"),
    _Rule("Children", "states:ListExecutions", "arn:aws:states:{here}:mapRun:{name}-run/*"),
    _Rule("Surveys", "s3:GetObject", "objects"),
    _Rule("Results", "s3:PutObject DeleteObject", "results"),
    # No run may write there: it holds the code of the functions and of the rendezvous' task.
    _Rule("KeepPackages", "s3:PutObject DeleteObject", "packages", effect="Deny"),
    _Rule("Lists", "s3:ListBucket", "buckets"),
    _Rule("Stack", "cloudformation:DescribeStacks", "arn:aws:cloudformation:{here}:stack/{name}/*"),
    _Rule("Logs", "logs:FilterLogEvents GetLogEvents DescribeLogStreams",
          "arn:aws:logs:{here}:log-group:/aws/lambda/{name}-*"),
    _Rule("Rendezvous", "ecs:UpdateService DescribeServices DescribeTasks",
          "arn:aws:ecs:{here}:service/{cluster}/{name}-rendezvous "
          "arn:aws:ecs:{here}:task/{cluster}/*"),
    _Rule("Address", "ssm:GetParameter PutParameter",
          "arn:aws:ssm:{here}:parameter/{name}/rendezvous-address"),
    _Rule("Configuration", "lambda:GetFunctionConfiguration",
          "arn:aws:lambda:{here}:function:{name}-*"),
    _Rule("Look", "ec2:DescribeNetworkInterfaces lambda:GetAccountSettings "
          "servicequotas:ListServiceQuotas", "*"),
    _Rule("Check", "lambda:InvokeFunction", "arn:aws:lambda:{here}:function:{name}-*"),
    _TASKS,
    _WHERE,
)  # fmt: skip

_DEPLOYER = (
    _Rule("Stack", "cloudformation:CreateChangeSet DescribeChangeSet ExecuteChangeSet "
          "DeleteChangeSet DescribeStacks DescribeStackEvents DescribeEvents DeleteStack "
          "TagResource", "arn:aws:cloudformation:{here}:stack/{name}/*"),
    _Rule("Bucket", "s3:CreateBucket ListBucket PutBucketTagging GetBucketTagging "
          "PutBucketPublicAccessBlock GetBucketPublicAccessBlock DeleteBucket "
          "GetEncryptionConfiguration",
          "arn:aws:s3:::{bucket}"),
    _Rule("Packages", "s3:GetObject PutObject DeleteObject AbortMultipartUpload",
          "arn:aws:s3:::{bucket}/*"),
    _Rule("Functions", "lambda:CreateFunction DeleteFunction GetFunction GetFunctionConfiguration "
          "UpdateFunctionCode UpdateFunctionConfiguration PutFunctionConcurrency "
          "DeleteFunctionConcurrency GetFunctionCodeSigningConfig GetRuntimeManagementConfig "
          "GetFunctionRecursionConfig GetFunctionScalingConfig TagResource UntagResource ListTags "
          "InvokeFunction", "arn:aws:lambda:{here}:function:{name}-*"),
    _Rule("Image", "ecr:GetRepositoryPolicy SetRepositoryPolicy BatchGetImage "
          "GetDownloadUrlForLayer", "arn:aws:ecr:{here}:repository/*"),
    _Rule("Layers", "lambda:GetLayerVersion", "arn:aws:lambda:{region}:*:layer:*:*"),
    _Rule("StateMachine", "states:CreateStateMachine UpdateStateMachine DeleteStateMachine "
          "DescribeStateMachine TagResource UntagResource ListTagsForResource",
          "arn:aws:states:{here}:stateMachine:{name}-run"),
    _Rule("LogGroups", "logs:CreateLogGroup DeleteLogGroup PutRetentionPolicy "
          "DeleteRetentionPolicy GetDataProtectionPolicy TagResource UntagResource "
          "ListTagsForResource", "arn:aws:logs:{here}:log-group:/*/{name}-*"),
    _Rule("Parameters", "ssm:PutParameter GetParameter GetParameters DeleteParameter "
          "AddTagsToResource RemoveTagsFromResource ListTagsForResource",
          "arn:aws:ssm:{here}:parameter/{name}/*"),
    # These actions cannot be limited to a narrower resource.
    _Rule("Look", "logs:DescribeLogGroups DescribeIndexPolicies DescribeResourcePolicies "
          "ssm:DescribeParameters lambda:GetAccountSettings servicequotas:ListServiceQuotas", "*"),
    _WHERE,
)  # fmt: skip
"""Rules to create, update, examine and remove a stack; rules for the roles are separate."""

_RENDEZVOUS = (
    _Rule("Events", "lambda:AddPermission RemovePermission GetPolicy",
          "arn:aws:lambda:{here}:function:{name}-*"),
    _Rule("Cluster", "ecs:CreateCluster DeleteCluster DescribeClusters UpdateCluster "
          "PutClusterCapacityProviders CreateService UpdateService DeleteService "
          "DescribeServices DescribeTasks ListServiceDeployments DescribeServiceDeployments "
          "TagResource UntagResource",
          "arn:aws:ecs:{here}:cluster/{cluster} arn:aws:ecs:{here}:service/{cluster}/{name}-* "
          "arn:aws:ecs:{here}:task/{cluster}/* "
          "arn:aws:ecs:{here}:service-deployment/{cluster}/{name}-*"),
    _Rule("FirstCluster", "iam:CreateServiceLinkedRole", _ECS_ROLE,
          ("StringEquals", "iam:AWSServiceName", "ecs.amazonaws.com")),
    _Rule("SeeItsRole", "iam:GetRole", _ECS_ROLE),
    _Rule("Network", "ec2:CreateVpc DeleteVpc ModifyVpcAttribute CreateSubnet DeleteSubnet "
          "CreateInternetGateway DeleteInternetGateway AttachInternetGateway "
          "DetachInternetGateway CreateRouteTable DeleteRouteTable CreateRoute DeleteRoute "
          "AssociateRouteTable DisassociateRouteTable CreateSecurityGroup DeleteSecurityGroup "
          "AuthorizeSecurityGroupIngress RevokeSecurityGroupIngress AuthorizeSecurityGroupEgress "
          "RevokeSecurityGroupEgress CreateTags DeleteTags DescribeVpcs DescribeVpcAttribute "
          "DescribeSubnets DescribeInternetGateways DescribeRouteTables DescribeSecurityGroups "
          "DescribeNetworkInterfaces DescribeNetworkAcls DescribeVpcEncryptionControls "
          "DescribeAvailabilityZones DescribeAccountAttributes", "*",
          ("StringEquals", "aws:RequestedRegion", "{region}")),
    _Rule("Rule", "events:PutRule DeleteRule DescribeRule PutTargets RemoveTargets "
          "ListTargetsByRule ListTagsForResource TagResource",
          "arn:aws:events:{here}:rule/{name}-rendezvous*"),
    # These actions cannot be limited to a narrower resource.
    _Rule("TaskDefinitions", "ecs:RegisterTaskDefinition DeregisterTaskDefinition "
          "DescribeTaskDefinition ListTagsForResource", "*"),
    _TASKS,
)  # fmt: skip

_ROLES = _Rule("Roles", "iam:DeleteRole GetRole DeleteRolePolicy GetRolePolicy ListRolePolicies "
               "ListAttachedRolePolicies TagRole UntagRole UpdateAssumeRolePolicy",
               "arn:aws:iam::{account}:role/{name}-*")  # fmt: skip
_MAKE_ROLES = "iam:CreateRole PutRolePolicy"
_BOUNDED = "iam:PutRolePermissionsBoundary"
_SERVICES = "lambda.amazonaws.com states.amazonaws.com ecs-tasks.amazonaws.com"

_RECORD = _Rule("Record", "route53:ListResourceRecordSets ChangeResourceRecordSets",
                "arn:aws:route53:::hostedzone/{zone}")  # fmt: skip
"""Rule to publish the rendezvous' address and to withdraw it."""


def text(policy: Policy) -> str:
    """The policy as JSON text that the AWS console accepts."""
    return json.dumps(policy, indent=2) + "\n"


def runner(
    name: str,
    account: str,
    region: str,
    reads: Sequence[str],
    writes: Sequence[str],
    zone: str = "",
    *,
    cluster: str = "",
) -> Policy:
    """Policy to start, watch and stop runs of one stack, and to read its logs, surveys and results.

    It also covers ``perseid aws doctor`` and ``perseid aws rendezvous``.

    Parameters
    ----------
    name
        Name of the stack.
    reads, writes
        Buckets with surveys, and buckets with results, as ``BUCKET``, or ``BUCKET/PREFIX``.
    zone
        Id of the hosted zone with the rendezvous' record, if it has one.
    cluster
        Name of the rendezvous' ECS cluster, where it is not the stack's own.
    """
    values = _values(name, account, region, zone, cluster)
    lists = {
        "buckets": _buckets([*reads, *writes]),
        "objects": _objects([*reads, *writes]),
        "results": _objects(writes),
        "packages": [f"{arn}/perseid/*/code/*" for arn in _buckets(writes)],
    }
    return _policy((*_RUNNER, _RECORD) if zone else _RUNNER, values, lists)


def deployer(
    name: str,
    account: str,
    region: str,
    bucket: str,
    others: Sequence[str] = (),
    *,
    role: str = "",
    boundary: str = "",
) -> Policy:
    """Policy to create, update, examine and remove one stack without a rendezvous, and what belongs
    to it.

    Anybody who may create roles with any policy and assign them to functions can administer the
    whole account. `role` or `boundary` prevents that.

    Parameters
    ----------
    name
        Name of the stack.
    bucket
        Bucket that holds its packages.
    others
        Further buckets with surveys or results.
    role
        ARN of a single role for all functions; no role may be created then.
    boundary
        ARN of the permissions boundary that every created role must have.
    """
    values = _values(name, account, region, "") | {"bucket": bucket}
    lists = {"buckets": _buckets([bucket, *others])}
    return _policy((*_DEPLOYER, *_role_rules(role, boundary)), values, lists)


def rendezvous_deployer(
    name: str, account: str, region: str, zone: str = "", *, cluster: str = ""
) -> Policy:
    """Additional policy for a stack with a rendezvous, beside `deployer`; parameters as for
    `runner`."""
    values = _values(name, account, region, zone, cluster)
    look = _Rule("Zone", "route53:GetHostedZone", "arn:aws:route53:::hostedzone/{zone}")
    return _policy((*_RENDEZVOUS, _RECORD, look) if zone else _RENDEZVOUS, values, {})


def _role_rules(role: str, boundary: str) -> Iterable[_Rule]:
    ours = role or _ROLES.resources
    passing = ("StringEquals", "iam:PassedToService", _SERVICES)
    yield _Rule("HandRolesToServices", "iam:PassRole", ours, passing)
    if role:
        return
    yield _ROLES
    if boundary:
        bounded = ("StringEquals", "iam:PermissionsBoundary", boundary)
        yield _Rule("MakeBoundedRoles", f"{_MAKE_ROLES} {_BOUNDED}", ours, bounded)
    else:
        yield _Rule("MakeRoles", _MAKE_ROLES, ours)


def _values(name: str, account: str, region: str, zone: str, cluster: str = "") -> dict[str, str]:
    return {
        "name": name,
        "cluster": cluster or name,
        "account": account,
        "region": region,
        "here": f"{region}:{account}",
        "zone": zone.rpartition("/")[2],
    }


def _policy(
    rules: Iterable[_Rule], values: Mapping[str, str], lists: Mapping[str, list[str]]
) -> Policy:
    statements = [_statement(rule, values, lists) for rule in rules]
    return {"Version": "2012-10-17", "Statement": statements}


def _statement(
    rule: _Rule, values: Mapping[str, str], lists: Mapping[str, list[str]]
) -> dict[str, Any]:
    words = rule.resources.split()
    resources = [arn for word in words for arn in lists.get(word, [word.format(**values)])]
    plain = {
        "Sid": rule.sid, "Effect": rule.effect, "Action": _actions(rule.actions),
        "Resource": resources,
    }  # fmt: skip
    if rule.condition is None:
        return plain
    operator, key, wanted = rule.condition
    known = wanted.format(**values).split()
    return {**plain, "Condition": {operator: {key: known if len(known) > 1 else known[0]}}}


def _actions(words: str) -> list[str]:
    """The actions, each with its service."""
    found, service = [], ""
    for word in words.split():
        own, colon, action = word.rpartition(":")
        service = own if colon else service
        found.append(f"{service}:{action}")
    return found


def _buckets(places: Sequence[str]) -> list[str]:
    """ARNs of the buckets in ``BUCKET`` or ``BUCKET/PREFIX``."""
    names = dict.fromkeys(place.partition("/")[0] for place in places)
    return [f"arn:aws:s3:::{name}" for name in names]


def _objects(places: Sequence[str]) -> list[str]:
    """ARNs of all objects in the buckets, or below their prefixes."""
    return [f"arn:aws:s3:::{place}/*" for place in dict.fromkeys(places)]
