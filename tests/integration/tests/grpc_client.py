"""Asks a Muster controller for its health and its services. Standard packages only; nothing generated from our files."""
import sys

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

with grpc.insecure_channel(sys.argv[1]) as channel:
    grpc.channel_ready_future(channel).result(timeout=30)
    reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30)
    print("health:", health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status))
    database = ProtoReflectionDescriptorDatabase(channel)
    for service in database.get_services():
        print("service:", service)
    for method in DescriptorPool(database).FindServiceByName("muster.v1.Muster").methods:
        print("method:", method.name)
