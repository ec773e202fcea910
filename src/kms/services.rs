//! Which service a call is for.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use tonic::body::Body;
use tonic::codegen::BoxFuture;
use tower::Service;

use super::{CurrentKeyring, MAX_REQUEST_BYTES, v1, v2};
use crate::config::settings::StatusVersion;
use crate::proto::v1beta1::key_management_service_server::KeyManagementServiceServer as V1Server;
use crate::proto::v2::key_management_service_server::KeyManagementServiceServer as V2Server;

/// KMS v1beta1 and KMS v2. tonic's own router would do as well, for a tenth of what an answer
/// out of memory costs.
#[derive(Clone)]
pub struct Services {
    v1: V1Server<v1::Service>,
    v2: V2Server<v2::Service>,
}

// === impl Services ===

impl Services {
    /// Both answer with whatever keyring is in force when a call begins; `version` is what v2's
    /// Status names.
    pub fn new(keyring: &Arc<dyn CurrentKeyring>, version: StatusVersion) -> Self {
        let v1 = V1Server::new(v1::Service::new(Arc::clone(keyring)));
        let v2 = V2Server::new(v2::Service::new(Arc::clone(keyring), version));
        Self {
            v1: v1.max_decoding_message_size(MAX_REQUEST_BYTES),
            v2: v2.max_decoding_message_size(MAX_REQUEST_BYTES),
        }
    }
}

impl Service<Request<Body>> for Services {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Response<Body>, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(())) // as both are
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // What is neither's, v1 answers as it answers a method that it does not have.
        if request.uri().path().starts_with("/v2.KeyManagementService/") {
            self.v2.call(request)
        } else {
            self.v1.call(request)
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body_util::Full;
    use tower::ServiceExt as _;

    use super::*;
    use crate::keyring::Keyring;
    use crate::kms::NotServing;

    struct Nobody;

    impl CurrentKeyring for Nobody {
        fn current(&self) -> Result<Arc<Keyring>, NotServing> {
            Err(NotServing("there is none".into()))
        }
    }

    async fn status_of(path: &str) -> Option<String> {
        let keyring = Arc::new(Nobody) as Arc<dyn CurrentKeyring>;
        let mut request = Request::new(Body::new(Full::new(Bytes::from_static(&[0; 5]))));
        *request.uri_mut() = path.parse().unwrap();
        let answer = Services::new(&keyring, StatusVersion::V2).oneshot(request).await.unwrap();
        answer.headers().get("grpc-status").map(|code| code.to_str().unwrap().to_owned())
    }

    #[tokio::test]
    async fn each_call_reaches_its_service_and_what_nobody_has_is_unimplemented() {
        let (served, unavailable) = (None, Some("14"));
        for (path, status) in [
            ("/v1beta1.KeyManagementService/Version", served),
            ("/v1beta1.KeyManagementService/Encrypt", unavailable),
            ("/v2.KeyManagementService/Status", unavailable),
            ("/v2.KeyManagementService/Version", Some("12")),
            ("/v1beta1.KeyManagementService/Status", Some("12")),
            ("/v3.KeyManagementService/Status", Some("12")),
            ("/", Some("12")),
        ] {
            assert_eq!(status_of(path).await.as_deref(), status, "{path}");
        }
    }
}
