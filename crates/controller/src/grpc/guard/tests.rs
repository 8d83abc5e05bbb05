//! What the guard must know of: all calls there are.

use std::collections::BTreeSet;

use muster_common::proto::DESCRIPTORS;
use prost::Message as _;

/// `/package.Service/Method` of every call that a controller answers, as its own descriptions say.
pub(in crate::grpc) fn all_calls() -> BTreeSet<String> {
    let sets = [
        DESCRIPTORS,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ];
    let mut calls = BTreeSet::new();
    for set in sets {
        let set = prost_types::FileDescriptorSet::decode(set).expect("our own descriptions");
        for file in set.file {
            for service in &file.service {
                let name = format!("{}.{}", file.package(), service.name());
                calls.extend(service.method.iter().map(|method| format!("/{name}/{}", method.name())));
            }
        }
    }
    calls
}
