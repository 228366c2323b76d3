"""What a person needs: the policy of who deploys, and of who only runs.

https://docs.aws.amazon.com/service-authorization/latest/reference/reference_policies_actions-resources-contextkeys.html
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

Policy = dict[str, Any]


def text(policy: Policy) -> str:
    """As the console takes it."""
    return json.dumps(policy, indent=2) + "\n"


def runner(
    name: str,
    account: str,
    region: str,
    reads: Sequence[str],
    writes: Sequence[str],
    zone: str = "",
) -> Policy:
    """Start, watch and stop runs of one stack; read its logs, surveys and results.

    Parameters
    ----------
    name
        Of the stack.
    reads, writes
        Names of the buckets with surveys, and with results.
    zone
        Id of the hosted zone with the rendezvous' record, if it has one.
    """
    here = f"{region}:{account}"
    return _policy(
        _allow(
            "Runs",
            ["states:StartExecution", "states:ListExecutions", "states:DescribeStateMachine"],
            [f"arn:aws:states:{here}:stateMachine:{name}-run"],
        ),
        _allow(
            "OneRun",
            [
                "states:DescribeExecution", "states:GetExecutionHistory", "states:StopExecution",
                "states:ListMapRuns", "states:DescribeMapRun", "states:RedriveExecution",
            ],
            [
                f"arn:aws:states:{here}:execution:{name}-run:*",
                f"arn:aws:states:{here}:execution:{name}-run/*",
                f"arn:aws:states:{here}:mapRun:{name}-run/*",
            ],
        ),
        _allow(
            "Children",
            ["states:ListExecutions"],
            [f"arn:aws:states:{here}:mapRun:{name}-run/*"],
        ),
        _allow("Surveys", ["s3:GetObject"], _objects([*reads, *writes])),
        _allow("Results", ["s3:PutObject", "s3:DeleteObject"], _objects(writes)),
        _allow("Lists", ["s3:ListBucket"], _buckets([*reads, *writes])),
        _allow("Stack", ["cloudformation:DescribeStacks"], [_stack(name, here)]),
        _allow(
            "Logs",
            ["logs:FilterLogEvents", "logs:GetLogEvents", "logs:DescribeLogStreams"],
            [f"arn:aws:logs:{here}:log-group:/aws/lambda/{name}-*"],
        ),
        _allow("Ping", ["lambda:InvokeFunction"], [f"arn:aws:lambda:{here}:function:{name}-ping"]),
        _allow(
            "Rendezvous",
            ["ecs:UpdateService", "ecs:DescribeServices"],
            [f"arn:aws:ecs:{here}:service/{name}/{name}-rendezvous"],
        ),
        _allow(
            "RendezvousTask", ["ecs:DescribeTasks"], [f"arn:aws:ecs:{here}:task/{name}/*"]
        ),
        _allow(
            "RendezvousTasks", ["ecs:ListTasks"], ["*"],
            {"ArnEquals": {"ecs:cluster": f"arn:aws:ecs:{here}:cluster/{name}"}},
        ),
        _allow("Addresses", ["ec2:DescribeNetworkInterfaces"], ["*"]),
        _allow(
            "Address",
            ["ssm:GetParameter", "ssm:PutParameter"],
            [f"arn:aws:ssm:{here}:parameter/{name}/rendezvous-address"],
        ),
        _allow(
            "Configuration",
            ["lambda:GetFunctionConfiguration"],
            [f"arn:aws:lambda:{here}:function:{name}-*"],
        ),
        _allow("WhereBuckets", ["s3:GetBucketLocation"], _buckets([*reads, *writes])),
        _allow("Quotas", ["lambda:GetAccountSettings", "servicequotas:ListServiceQuotas"], ["*"]),
        *_record(zone),
    )  # fmt: skip


def deployer(name: str, account: str, region: str, bucket: str, zone: str = "") -> Policy:
    """Make, update and remove one stack, and what is made beside it."""
    here = f"{region}:{account}"
    functions = [f"arn:aws:lambda:{here}:function:{name}-*"]
    return _policy(
        _allow(
            "Stack",
            [
                "cloudformation:CreateChangeSet", "cloudformation:DescribeChangeSet",
                "cloudformation:ExecuteChangeSet", "cloudformation:DeleteChangeSet",
                "cloudformation:DescribeStacks", "cloudformation:DescribeStackEvents",
                "cloudformation:DeleteStack", "cloudformation:TagResource",
            ],
            [_stack(name, here)],
        ),
        _allow(
            "Bucket",
            [
                "s3:CreateBucket", "s3:ListBucket", "s3:PutBucketTagging", "s3:GetBucketTagging",
                "s3:PutBucketPublicAccessBlock", "s3:DeleteBucket",
            ],
            _buckets([bucket]),
        ),
        _allow(
            "Packages", ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"], _objects([bucket])
        ),
        _allow(
            "Functions",
            [
                "lambda:CreateFunction", "lambda:DeleteFunction", "lambda:GetFunction",
                "lambda:GetFunctionConfiguration", "lambda:UpdateFunctionCode",
                "lambda:UpdateFunctionConfiguration", "lambda:PutFunctionConcurrency",
                "lambda:DeleteFunctionConcurrency", "lambda:AddPermission",
                "lambda:RemovePermission", "lambda:GetFunctionCodeSigningConfig",
                "lambda:GetRuntimeManagementConfig", "lambda:GetFunctionRecursionConfig",
                "lambda:TagResource", "lambda:UntagResource", "lambda:ListTags",
            ],
            functions,
        ),
        _allow(
            "Layers", ["lambda:GetLayerVersion"], [f"arn:aws:lambda:{region}:*:layer:*:*"]
        ),
        _allow(
            "Roles",
            [
                "iam:CreateRole", "iam:DeleteRole", "iam:GetRole", "iam:PutRolePolicy",
                "iam:DeleteRolePolicy", "iam:GetRolePolicy", "iam:TagRole", "iam:UntagRole",
                "iam:UpdateAssumeRolePolicy",
            ],
            [f"arn:aws:iam::{account}:role/{name}-*"],
        ),
        _allow(
            "HandRolesToServices",
            ["iam:PassRole"],
            [f"arn:aws:iam::{account}:role/{name}-*"],
            {
                "StringEquals": {
                    "iam:PassedToService": [
                        "lambda.amazonaws.com", "states.amazonaws.com", "ecs-tasks.amazonaws.com",
                    ]
                }
            },
        ),
        _allow(
            "StateMachine",
            [
                "states:CreateStateMachine", "states:UpdateStateMachine",
                "states:DeleteStateMachine", "states:DescribeStateMachine",
                "states:TagResource", "states:UntagResource", "states:ListTagsForResource",
            ],
            [f"arn:aws:states:{here}:stateMachine:{name}-run"],
        ),
        _allow(
            "LogGroups",
            [
                "logs:CreateLogGroup", "logs:DeleteLogGroup", "logs:PutRetentionPolicy",
                "logs:DeleteRetentionPolicy", "logs:TagResource", "logs:UntagResource",
                "logs:ListTagsForResource",
            ],
            [
                f"arn:aws:logs:{here}:log-group:/aws/lambda/{name}-*",
                f"arn:aws:logs:{here}:log-group:/perseid/{name}-*",
            ],
        ),
        _allow("SeeLogGroups", ["logs:DescribeLogGroups"], ["*"]),
        _allow(
            "Cluster",
            [
                "ecs:CreateCluster", "ecs:DeleteCluster", "ecs:DescribeClusters",
                "ecs:UpdateCluster", "ecs:PutClusterCapacityProviders", "ecs:CreateService",
                "ecs:UpdateService", "ecs:DeleteService", "ecs:DescribeServices",
                "ecs:TagResource", "ecs:UntagResource",
            ],
            [
                f"arn:aws:ecs:{here}:cluster/{name}",
                f"arn:aws:ecs:{here}:service/{name}/{name}-rendezvous",
            ],
        ),
        _allow(
            "TaskDefinitions",
            [
                "ecs:RegisterTaskDefinition", "ecs:DeregisterTaskDefinition",
                "ecs:DescribeTaskDefinition", "ecs:ListTagsForResource",
            ],
            ["*"],
        ),
        _allow(
            "FirstService",
            ["iam:CreateServiceLinkedRole"],
            [
                f"arn:aws:iam::{account}:role/aws-service-role/ecs.amazonaws.com/"
                "AWSServiceRoleForECS"
            ],
            {"StringEquals": {"iam:AWSServiceName": "ecs.amazonaws.com"}},
        ),
        _allow(
            "Network",
            [
                "ec2:CreateVpc", "ec2:DeleteVpc", "ec2:ModifyVpcAttribute", "ec2:CreateSubnet",
                "ec2:DeleteSubnet", "ec2:CreateInternetGateway", "ec2:DeleteInternetGateway",
                "ec2:AttachInternetGateway", "ec2:DetachInternetGateway", "ec2:CreateRouteTable",
                "ec2:DeleteRouteTable", "ec2:CreateRoute", "ec2:DeleteRoute",
                "ec2:AssociateRouteTable", "ec2:DisassociateRouteTable",
                "ec2:CreateSecurityGroup", "ec2:DeleteSecurityGroup",
                "ec2:AuthorizeSecurityGroupIngress", "ec2:RevokeSecurityGroupIngress",
                "ec2:AuthorizeSecurityGroupEgress", "ec2:RevokeSecurityGroupEgress",
                "ec2:CreateTags", "ec2:DeleteTags",
                "ec2:DescribeVpcs", "ec2:DescribeVpcAttribute", "ec2:DescribeSubnets",
                "ec2:DescribeInternetGateways", "ec2:DescribeRouteTables",
                "ec2:DescribeSecurityGroups", "ec2:DescribeNetworkInterfaces",
                "ec2:DescribeAvailabilityZones", "ec2:DescribeAccountAttributes",
            ],
            ["*"],
            {"StringEquals": {"aws:RequestedRegion": region}},
        ),
        _allow(
            "Rule",
            [
                "events:PutRule", "events:DeleteRule", "events:DescribeRule", "events:PutTargets",
                "events:RemoveTargets", "events:ListTargetsByRule", "events:TagResource",
            ],
            [f"arn:aws:events:{here}:rule/{name}-rendezvous"],
        ),
        _allow(
            "Parameters",
            [
                "ssm:PutParameter", "ssm:GetParameter", "ssm:GetParameters", "ssm:DeleteParameter",
                "ssm:AddTagsToResource", "ssm:RemoveTagsFromResource",
                "ssm:ListTagsForResource",
            ],
            [f"arn:aws:ssm:{here}:parameter/{name}/*"],
        ),
        _allow("SeeParameters", ["ssm:DescribeParameters"], ["*"]),
        *_record(zone),
    )  # fmt: skip


def _record(zone: str) -> list[dict[str, Any]]:
    """To publish the rendezvous' address, and to take it back."""
    if not zone:
        return []
    actions = ["route53:ListResourceRecordSets", "route53:ChangeResourceRecordSets"]
    return [_allow("Record", actions, [f"arn:aws:route53:::hostedzone/{zone}"])]


def _policy(*statements: dict[str, Any]) -> Policy:
    return {"Version": "2012-10-17", "Statement": list(statements)}


def _allow(
    sid: str, actions: Sequence[str], resources: Sequence[str], condition: object = None
) -> dict[str, Any]:
    plain = {"Sid": sid, "Effect": "Allow", "Action": list(actions), "Resource": list(resources)}
    return plain if condition is None else {**plain, "Condition": condition}


def _stack(name: str, here: str) -> str:
    return f"arn:aws:cloudformation:{here}:stack/{name}/*"


def _buckets(names: Sequence[str]) -> list[str]:
    return [f"arn:aws:s3:::{name}" for name in dict.fromkeys(names)]


def _objects(names: Sequence[str]) -> list[str]:
    return [f"arn:aws:s3:::{name}/*" for name in dict.fromkeys(names)]
