//! Compiles our own proto files with protox, so that no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["kms/v1beta1/api.proto", "kms/v2/api.proto"];
    let descriptors = protox::compile(files, ["../../proto"])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    for file in files {
        println!("cargo:rerun-if-changed=../../proto/{file}");
    }

    // The lab writes to etcd as kube-apiserver does; the daemon's part of etcd can only read.
    let descriptors = protox::compile(["etcd.proto"], ["proto"])?;
    tonic_prost_build::configure().build_server(false).compile_fds(descriptors)?;
    println!("cargo:rerun-if-changed=proto/etcd.proto");
    Ok(())
}
