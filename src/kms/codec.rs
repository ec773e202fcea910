//! How messages become bytes: protobuf, in buffers of their size.

use std::marker::PhantomData;

use prost::Message;
use tonic::codec::{BufferSettings, Codec};
use tonic_prost::ProstCodec;

/// What a buffer holds before it grows. Nearly every message fits: a data-encryption key has
/// 32 bytes, and its ciphertext about a hundred. tonic's 8 KiB would be allocated, and wiped,
/// twice for each call.
const BUFFER: usize = 1_024;

/// How much is written before it is sent; there is one message a call, so it is never waited
/// for.
const YIELD_THRESHOLD: usize = 32 * 1_024;

/// Protobuf in small buffers. The generated services and clients of KMS make one a call.
#[derive(Debug)]
pub struct KmsCodec<T, U>(PhantomData<(T, U)>);

// === impl KmsCodec ===

impl<T, U> Default for KmsCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for KmsCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = <ProstCodec<T, U> as Codec>::Encoder;
    type Decoder = <ProstCodec<T, U> as Codec>::Decoder;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::new(BUFFER, YIELD_THRESHOLD))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(BufferSettings::new(BUFFER, YIELD_THRESHOLD))
    }
}
