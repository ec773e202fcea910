//! Compiles our own proto files with protox, so that no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let kms = ["kms/v1beta1/api.proto", "kms/v2/api.proto"];
    let descriptors = protox::compile(kms, ["proto"])?;
    let codec = "crate::kms::codec::KmsCodec";
    tonic_prost_build::configure().codec_path(codec).compile_fds(descriptors)?;

    // Of etcd we are a client, and keys and values stay in the buffer that they came in.
    let etcd = ["etcd/kv.proto", "etcd/rpc.proto"];
    let descriptors = protox::compile(etcd, ["proto"])?;
    tonic_prost_build::configure().build_server(false).bytes(".mvccpb").compile_fds(descriptors)?;

    for file in kms.iter().chain(&etcd) {
        println!("cargo:rerun-if-changed=proto/{file}");
    }
    Ok(())
}
