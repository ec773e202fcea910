//! A DNS server whose records and moods a test decides.
//!
//! Small and real: it speaks the protocol over UDP and TCP (messages are read and written
//! by the `hickory-proto` crate), so that what is tested is what an operator's resolver
//! would do to the daemon.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::SRV;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;

use crate::{Context, Result, fail};

/// The longest message that a client may send.
const MAX_QUERY: usize = 4096;

/// A DNS server on loopback, UDP and TCP on one port. Every change takes effect with the
/// next question. Closed when dropped.
#[derive(Debug)]
pub struct Dns {
    address: SocketAddr,
    zone: Arc<Mutex<Zone>>,
    _tasks: JoinSet<()>,
}

/// How a [`Dns`] answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DnsMood {
    /// From its records; NXDOMAIN for a name without any.
    #[default]
    Answers,
    /// SERVFAIL, as a resolver whose upstream is away.
    Fails,
    /// NXDOMAIN, as if every name had been deleted.
    KnowsNothing,
    /// No error and no record, whatever is asked.
    Empty,
    /// Questions are read and never answered.
    Hangs,
}

/// One target of an SRV name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SrvTarget {
    /// Lower ones come first.
    pub priority: u16,
    /// Among those of one priority, higher ones are preferred.
    pub weight: u16,
    /// Where it listens.
    pub port: u16,
    /// The host, a name that has addresses of its own.
    pub host: String,
}

#[derive(Debug)]
struct Zone {
    mood: DnsMood,
    ttl: u32,
    records: HashMap<Name, Vec<RData>>,
    asked: HashMap<Name, usize>,
}

// === impl Dns ===

impl Dns {
    /// Starts one without records; their time to live will be one second.
    pub async fn start() -> Result<Self> {
        let mut tries = 10;
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
            match TcpListener::bind(udp.local_addr()?).await {
                Ok(tcp) => break (udp, tcp),
                Err(_) if tries > 1 => tries -= 1, // somebody else has that TCP port
                Err(error) => fail!("no port is free for both UDP and TCP: {error}"),
            }
        };
        let address = udp.local_addr()?;
        let zone = Zone {
            mood: DnsMood::default(),
            ttl: 1,
            records: HashMap::new(),
            asked: HashMap::new(),
        };
        let zone = Arc::new(Mutex::new(zone));
        let mut tasks = JoinSet::new();
        tasks.spawn(serve_udp(udp, Arc::clone(&zone)));
        tasks.spawn(serve_tcp(tcp, Arc::clone(&zone)));
        Ok(Self { address, zone, _tasks: tasks })
    }

    /// Where it listens, as `dns.servers` takes it.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// `name` has exactly these addresses, IPv4 and IPv6 mixed; with none, it exists and
    /// has no address.
    pub fn set(&self, name: &str, addresses: &[IpAddr]) -> Result {
        let data = addresses.iter().map(|address| match address {
            IpAddr::V4(v4) => RData::A((*v4).into()),
            IpAddr::V6(v6) => RData::AAAA((*v6).into()),
        });
        self.put(name, data.collect())
    }

    /// `name` is a service with exactly these targets.
    pub fn set_srv(&self, name: &str, targets: &[SrvTarget]) -> Result {
        let data = targets
            .iter()
            .map(|t| Ok(RData::SRV(SRV::new(t.priority, t.weight, t.port, parse(&t.host)?))))
            .collect::<Result<_>>()?;
        self.put(name, data)
    }

    /// `name` is deleted: the answer is NXDOMAIN.
    pub fn remove(&self, name: &str) -> Result {
        lock(&self.zone).records.remove(&parse(name)?);
        Ok(())
    }

    /// The time to live of every record, in whole seconds.
    pub fn set_ttl(&self, ttl: Duration) {
        lock(&self.zone).ttl = u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX);
    }

    /// Changes how it answers.
    pub fn mood(&self, mood: DnsMood) {
        lock(&self.zone).mood = mood;
    }

    /// How often `name` was asked for, with any record type and in any mood.
    pub fn asked(&self, name: &str) -> Result<usize> {
        let name = parse(name)?;
        Ok(lock(&self.zone).asked.get(&name).copied().unwrap_or(0))
    }

    fn put(&self, name: &str, data: Vec<RData>) -> Result {
        lock(&self.zone).records.insert(parse(name)?, data);
        Ok(())
    }
}

fn parse(name: &str) -> Result<Name> {
    let mut parsed = Name::from_ascii(name).context(format!("the DNS name {name}"))?;
    parsed.set_fqdn(true);
    Ok(parsed.to_lowercase())
}

fn lock(zone: &Mutex<Zone>) -> MutexGuard<'_, Zone> {
    zone.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve_udp(socket: UdpSocket, zone: Arc<Mutex<Zone>>) {
    let mut buffer = [0; MAX_QUERY];
    loop {
        // Linux tells here that a client had gone before its answer came: no reason to end.
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else { continue };
        let answer = lock(&zone).answer(&buffer[..length]);
        if let Some(answer) = answer {
            let _ = socket.send_to(&answer, client).await;
        }
    }
}

async fn serve_tcp(listener: TcpListener, zone: Arc<Mutex<Zone>>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((stream, _)) = listener.accept() => {
                let zone = Arc::clone(&zone);
                connections.spawn(async move {
                    let _ = serve_stream(stream, &zone).await;
                });
            }
            Some(_ended) = connections.join_next() => {}
        }
    }
}

/// Each message follows its length in two bytes.
async fn serve_stream(mut stream: TcpStream, zone: &Mutex<Zone>) -> std::io::Result<()> {
    loop {
        let length = usize::from(stream.read_u16().await?);
        let mut query = vec![0; length];
        stream.read_exact(&mut query).await?;
        let answer = lock(zone).answer(&query);
        if let Some(answer) = answer {
            stream.write_u16(u16::try_from(answer.len()).unwrap_or(u16::MAX)).await?;
            stream.write_all(&answer).await?;
        }
    }
}

// === impl Zone ===

impl Zone {
    /// The answer to a query; none while it hangs, or when the query is no DNS.
    fn answer(&mut self, query: &[u8]) -> Option<Vec<u8>> {
        let query = Message::from_vec(query).ok()?;
        let question = query.queries.first()?.clone();
        let name = question.name().to_lowercase();
        *self.asked.entry(name.clone()).or_default() += 1;

        let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
        answer.metadata.recursion_desired = query.metadata.recursion_desired;
        answer.metadata.recursion_available = true;
        answer.metadata.response_code = match self.mood {
            DnsMood::Hangs => return None,
            DnsMood::Fails => ResponseCode::ServFail,
            DnsMood::KnowsNothing => ResponseCode::NXDomain,
            DnsMood::Answers if !self.records.contains_key(&name) => ResponseCode::NXDomain,
            DnsMood::Answers | DnsMood::Empty => ResponseCode::NoError,
        };
        if self.mood == DnsMood::Answers {
            let wanted = question.query_type();
            let found = self.records.get(&name).into_iter().flatten();
            let records = found
                .filter(|data| wanted == RecordType::ANY || data.record_type() == wanted)
                .map(|data| Record::from_rdata(question.name().clone(), self.ttl, data.clone()));
            answer.add_answers(records);
        }
        answer.add_query(question);
        answer.to_vec().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "vault.lab";

    fn question(kind: RecordType) -> Vec<u8> {
        let mut message = Message::query();
        // Clients may write names in any case.
        let name = Name::from_ascii("Vault.Lab.").unwrap();
        message.add_query(hickory_proto::op::Query::query(name, kind));
        message.to_vec().unwrap()
    }

    async fn over_udp(dns: &Dns, kind: RecordType) -> Result<Message> {
        let socket = UdpSocket::bind("127.0.0.1:0").await?;
        socket.send_to(&question(kind), dns.address()).await?;
        let mut buffer = [0; MAX_QUERY];
        let (length, _) =
            tokio::time::timeout(Duration::from_secs(10), socket.recv_from(&mut buffer)).await??;
        Ok(Message::from_vec(&buffer[..length])?)
    }

    async fn over_tcp(dns: &Dns, kind: RecordType) -> Result<Message> {
        let mut stream = TcpStream::connect(dns.address()).await?;
        let question = question(kind);
        stream.write_u16(u16::try_from(question.len())?).await?;
        stream.write_all(&question).await?;
        let mut answer = vec![0; usize::from(stream.read_u16().await?)];
        stream.read_exact(&mut answer).await?;
        Ok(Message::from_vec(&answer)?)
    }

    #[tokio::test]
    async fn it_answers_from_its_records_over_udp_and_tcp() -> Result {
        let dns = Dns::start().await?;
        dns.set(NAME, &["127.0.0.2".parse()?, "::1".parse()?])?;
        for answer in [over_udp(&dns, RecordType::A).await?, over_tcp(&dns, RecordType::A).await?] {
            let data: Vec<_> = answer.answers.iter().map(|record| &record.data).collect();
            assert_eq!(data, [&RData::A(Ipv4Addr::new(127, 0, 0, 2).into())]);
        }
        let six = over_udp(&dns, RecordType::AAAA).await?;
        assert_eq!(six.answers.len(), 1);
        assert_eq!(over_udp(&dns, RecordType::SRV).await?.answers.len(), 0);
        assert_eq!(dns.asked(NAME)?, 4);
        Ok(())
    }

    #[tokio::test]
    async fn its_mood_decides_what_it_says() -> Result {
        let dns = Dns::start().await?;
        let target = SrvTarget { priority: 1, weight: 2, port: 8200, host: "a.lab".into() };
        dns.set_srv(NAME, &[target])?;
        let code = |answer: Message| (answer.metadata.response_code, answer.answers.len());
        let srv = RecordType::SRV;
        assert_eq!(code(over_udp(&dns, srv).await?), (ResponseCode::NoError, 1));
        dns.mood(DnsMood::Fails);
        assert_eq!(code(over_udp(&dns, srv).await?), (ResponseCode::ServFail, 0));
        dns.mood(DnsMood::KnowsNothing);
        assert_eq!(code(over_udp(&dns, srv).await?), (ResponseCode::NXDomain, 0));
        dns.mood(DnsMood::Empty);
        assert_eq!(code(over_udp(&dns, srv).await?), (ResponseCode::NoError, 0));
        dns.mood(DnsMood::Hangs);
        assert_eq!(lock(&dns.zone).answer(&question(srv)), None);
        dns.mood(DnsMood::Answers);
        dns.remove(NAME)?;
        assert_eq!(code(over_udp(&dns, srv).await?), (ResponseCode::NXDomain, 0));
        Ok(())
    }
}
