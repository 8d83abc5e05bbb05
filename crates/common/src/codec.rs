//! How messages become bytes on a connection: protobuf, with small buffers for the many connections that are quiet.

use std::marker::PhantomData;

use prost::Message;
use tonic::codec::{BufferSettings, Codec};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// What a stream has room for before it sends or receives more; it grows as messages do. The library's own 8 KiB, twice
/// for each of ten thousand agents, are a sixth of a gigabyte that waits for nothing.
const ROOM: usize = 1024;
/// A stream that has so much to send lets others go first; the library's own value.
const YIELD_AT: usize = 32 * 1024;

/// The codec of every service of ours; the generated code names it.
#[derive(Clone, Copy, Debug)]
pub struct ProtoCodec<T, U> {
    messages: PhantomData<(T, U)>,
}

impl<T, U> Default for ProtoCodec<T, U> {
    fn default() -> Self {
        Self { messages: PhantomData }
    }
}

impl<T, U> Codec for ProtoCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::new(ROOM, YIELD_AT))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(BufferSettings::new(ROOM, YIELD_AT))
    }
}
