//! `Noise_IK_25519_ChaChaPoly_BLAKE2s` with Tailscale's framing. Called by both ends of ts2021.
//!
//! Invariant: the only randomness is the ephemeral key that the caller hands in, used once; a
//! Diffie-Hellman result of zero is refused; both payloads are empty.

use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::{CryptoResolver, DefaultResolver};
use snow::types::{Cipher, Dh, Hash, Random};
use snow::{Builder, HandshakeState};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use super::{
    ERROR_TEXT_BYTES_MAX, HEADER_BYTES, INITIATION_BYTES, NoiseError, RESPONSE_BYTES, Records,
    TYPE_ERROR, TYPE_INITIATION, TYPE_RESPONSE,
};
use crate::key::{MachinePrivate, MachinePublic};

const SUITE: &str = "Noise_IK_25519_ChaChaPoly_BLAKE2s";
/// Followed by the protocol version in decimal.
const PROLOGUE: &str = "Tailscale Control Protocol v";
/// Noise payload of the initiation, without version and header.
const INITIATION_NOISE_BYTES: usize = 96;
/// Noise payload of the response, without header.
const RESPONSE_NOISE_BYTES: usize = 48;

/// The client, between its first message and the server's answer.
pub struct Initiator {
    pub(super) state: Box<HandshakeState>,
}

impl std::fmt::Debug for Initiator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Initiator(..)")
    }
}

impl Initiator {
    /// Begins a handshake with `server`: the state, and the message to send.
    ///
    /// `version` is our capability version; `ephemeral` is 32 fresh secret random bytes.
    ///
    /// # Errors
    /// [`NoiseError::Handshake`], for a server key that yields a zero shared secret.
    pub fn new(
        machine: &MachinePrivate,
        server: MachinePublic,
        version: u16,
        ephemeral: Zeroizing<[u8; 32]>,
    ) -> Result<(Self, [u8; INITIATION_BYTES]), NoiseError> {
        let prologue = format!("{PROLOGUE}{version}");
        let mut state = begin(machine, Some(server), prologue.as_bytes(), ephemeral)?;
        let noise: [u8; INITIATION_NOISE_BYTES] = write_message(&mut state)?;
        let mut message = Vec::with_capacity(INITIATION_BYTES);
        message.extend_from_slice(&version.to_be_bytes());
        message.extend_from_slice(&header(TYPE_INITIATION, INITIATION_NOISE_BYTES));
        message.extend_from_slice(&noise);
        let malformed = |_| NoiseError::Malformed {
            message: "initiation",
        };
        let message = message.try_into().map_err(malformed)?;
        Ok((
            Self {
                state: Box::new(state),
            },
            message,
        ))
    }

    /// Takes the server's whole answer, header included (see [`message_bytes`]).
    ///
    /// # Errors
    /// [`NoiseError::Refused`] when the server answered with an error message, otherwise
    /// [`NoiseError::Malformed`] or [`NoiseError::Handshake`].
    pub fn handle_response(mut self, message: &[u8]) -> Result<Records, NoiseError> {
        let malformed = NoiseError::Malformed {
            message: "response",
        };
        let Some((&[kind, high, low], noise)) = message.split_first_chunk::<HEADER_BYTES>() else {
            return Err(malformed);
        };
        if usize::from(u16::from_be_bytes([high, low])) != noise.len() {
            return Err(malformed);
        }
        match kind {
            TYPE_ERROR => {
                let text = noise.get(..ERROR_TEXT_BYTES_MAX).unwrap_or(noise);
                let text = String::from_utf8_lossy(text).into_owned();
                return Err(NoiseError::Refused { text });
            }
            TYPE_RESPONSE if noise.len() == RESPONSE_NOISE_BYTES => {}
            _ => return Err(malformed),
        }
        read_message(&mut self.state, noise, "response")?;
        let (client_key, server_key) = split(&mut self.state);
        Ok(Records::new(&client_key, &server_key))
    }
}

/// The server's side, which is done in one step.
#[derive(Debug)]
pub struct Responder {
    /// What to send back.
    pub response: [u8; RESPONSE_BYTES],
    /// The established connection.
    pub records: Records,
    /// Who is at the other end; the handshake proves it once the first record opens.
    pub client: MachinePublic,
    /// The capability version that the client claims; bound into the handshake.
    pub version: u16,
}

impl Responder {
    /// Answers a client's first message. `ephemeral` is 32 fresh secret random bytes.
    ///
    /// # Errors
    /// [`NoiseError::Malformed`] or [`NoiseError::Handshake`].
    pub fn handle_initiation(
        server: &MachinePrivate,
        message: &[u8],
        ephemeral: Zeroizing<[u8; 32]>,
    ) -> Result<Self, NoiseError> {
        let malformed = || NoiseError::Malformed {
            message: "initiation",
        };
        let message: &[u8; INITIATION_BYTES] = message.try_into().map_err(|_| malformed())?;
        let (version, message) = message.split_first_chunk::<2>().ok_or_else(malformed)?;
        let (head, noise) = message
            .split_first_chunk::<HEADER_BYTES>()
            .ok_or_else(malformed)?;
        if *head != header(TYPE_INITIATION, INITIATION_NOISE_BYTES) {
            return Err(malformed());
        }
        let version = u16::from_be_bytes(*version);
        let prologue = format!("{PROLOGUE}{version}");
        let mut state = begin(server, None, prologue.as_bytes(), ephemeral)?;
        read_message(&mut state, noise, "initiation")?;
        let client = state.get_remote_static().unwrap_or_default();
        let client = MachinePublic::from_bytes(client.try_into().map_err(|_| malformed())?);
        let noise: [u8; RESPONSE_NOISE_BYTES] = write_message(&mut state)?;
        let mut response = [0; RESPONSE_BYTES];
        let answer = header(TYPE_RESPONSE, RESPONSE_NOISE_BYTES)
            .into_iter()
            .chain(noise);
        for (to, from) in response.iter_mut().zip(answer) {
            *to = from;
        }
        let (client_key, server_key) = split(&mut state);
        Ok(Self {
            response,
            records: Records::new(&server_key, &client_key),
            client,
            version,
        })
    }
}

/// Length in bytes of the message that begins with `received` (type and length, no version), header
/// included; `None` while fewer than three bytes are there.
///
/// # Errors
/// [`NoiseError::Malformed`] when it is no answer to an initiation or a response of a wrong length.
pub fn message_bytes(received: &[u8]) -> Result<Option<usize>, NoiseError> {
    let Some((&[kind, high, low], _)) = received.split_first_chunk::<HEADER_BYTES>() else {
        return Ok(None);
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    if kind == TYPE_ERROR || (kind == TYPE_RESPONSE && length == RESPONSE_NOISE_BYTES) {
        return Ok(Some(HEADER_BYTES + length));
    }
    Err(NoiseError::Malformed {
        message: "response",
    })
}

fn header(kind: u8, length: usize) -> [u8; HEADER_BYTES] {
    let [high, low] = u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes();
    [kind, high, low]
}

pub(super) fn begin(
    local: &MachinePrivate,
    remote: Option<MachinePublic>,
    prologue: &[u8],
    ephemeral: Zeroizing<[u8; 32]>,
) -> Result<HandshakeState, NoiseError> {
    let failed = |source| NoiseError::Handshake {
        step: "setting up",
        source,
    };
    let local = local.to_bytes();
    let params = SUITE.parse().map_err(failed)?;
    let resolver = Box::new(OneEphemeral(ephemeral));
    let builder = Builder::with_resolver(params, resolver)
        .local_private_key(local.as_ref())
        .and_then(|builder| builder.prologue(prologue))
        .map_err(failed)?;
    match remote {
        Some(remote) => builder
            .remote_public_key(remote.as_bytes())
            .and_then(Builder::build_initiator)
            .map_err(failed),
        None => builder.build_responder().map_err(failed),
    }
}

/// Writes the next message, whose length the pattern fixes.
pub(super) fn write_message<const N: usize>(
    state: &mut HandshakeState,
) -> Result<[u8; N], NoiseError> {
    let mut message = [0; N];
    let failed = |source| NoiseError::Handshake {
        step: "writing a message",
        source,
    };
    match state.write_message(&[], &mut message).map_err(failed)? {
        written if written == N => Ok(message),
        _ => Err(NoiseError::Malformed {
            message: "own handshake",
        }),
    }
}

fn read_message(
    state: &mut HandshakeState,
    noise: &[u8],
    step: &'static str,
) -> Result<(), NoiseError> {
    // Both payloads are empty; the buffer has room for a whole message so that the library's own
    // length checks, not ours, are what can fail.
    let mut payload = [0; INITIATION_NOISE_BYTES];
    state
        .read_message(noise, &mut payload)
        .map(|_| ())
        .map_err(|source| NoiseError::Handshake { step, source })
}

/// The transport keys: client to server, server to client.
fn split(state: &mut HandshakeState) -> (Zeroizing<[u8; 32]>, Zeroizing<[u8; 32]>) {
    let (client_key, server_key) = state.dangerously_get_raw_split();
    (Zeroizing::new(client_key), Zeroizing::new(server_key))
}

/// Gives the Noise library the caller's bytes for its one ephemeral key, and a Diffie-Hellman that
/// wipes its secrets and refuses a zero result.
struct OneEphemeral(Zeroizing<[u8; 32]>);

impl CryptoResolver for OneEphemeral {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(OneDraw(Some(self.0.clone()))))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        (*choice == DHChoice::Curve25519).then(|| Box::<WipedDh>::default() as Box<dyn Dh>)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        DefaultResolver.resolve_cipher(choice)
    }
}

struct OneDraw(Option<Zeroizing<[u8; 32]>>);

impl Random for OneDraw {
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), snow::Error> {
        let bytes = self.0.take().ok_or(snow::Error::Rng)?;
        if dest.len() != bytes.len() {
            return Err(snow::Error::Rng);
        }
        dest.copy_from_slice(bytes.as_slice());
        Ok(())
    }
}

struct WipedDh {
    secret: StaticSecret,
    public: PublicKey,
}

impl Default for WipedDh {
    /// The library makes the object first and sets or generates its key afterwards.
    fn default() -> Self {
        let secret = StaticSecret::from([0; 32]);
        let public = PublicKey::from(&secret);
        Self { secret, public }
    }
}

impl Dh for WipedDh {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        32
    }

    fn priv_len(&self) -> usize {
        32
    }

    fn set(&mut self, privkey: &[u8]) {
        let mut bytes = Zeroizing::new([0; 32]);
        for (to, from) in bytes.iter_mut().zip(privkey) {
            *to = *from;
        }
        self.secret = StaticSecret::from(*bytes);
        self.public = PublicKey::from(&self.secret);
    }

    fn generate(&mut self, rng: &mut dyn Random) -> Result<(), snow::Error> {
        let mut bytes = Zeroizing::new([0; 32]);
        rng.try_fill_bytes(bytes.as_mut())?;
        self.set(bytes.as_ref());
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        self.public.as_bytes()
    }

    fn privkey(&self) -> &[u8] {
        self.secret.as_bytes()
    }

    fn dh(&self, pubkey: &[u8], out: &mut [u8]) -> Result<(), snow::Error> {
        let public: [u8; 32] = pubkey
            .get(..32)
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or(snow::Error::Dh)?;
        let shared = self.secret.diffie_hellman(&PublicKey::from(public));
        if !shared.was_contributory() {
            return Err(snow::Error::Dh);
        }
        let out = out.get_mut(..32).ok_or(snow::Error::Dh)?;
        out.copy_from_slice(shared.as_bytes());
        Ok(())
    }
}
