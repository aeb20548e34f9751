//! What is asked of a client, and what it says of it: one line of text each.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    time::Duration,
};

use anyhow::{Context as _, Error, Result, bail};

/// One load on one connection at a time, in a closed loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Load {
    /// Bytes from the client to the server on one connection.
    Stream,
    /// A request and its reply, 64 bytes each, on one connection.
    Requests,
    /// Connect, one byte each way, the server closes first.
    Connections,
}

impl Load {
    /// All three.
    pub const ALL: [Self; 3] = [Self::Stream, Self::Requests, Self::Connections];

    /// The name in orders and in the names of rows.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::Requests => "requests",
            Self::Connections => "connections",
        }
    }

    /// The most bytes, requests or connections of one order, whatever its time:
    /// some twenty times what a second brings here.
    pub const fn bound(self) -> u64 {
        match self {
            Self::Stream => 64 << 30,
            Self::Requests => 2_000_000,
            Self::Connections => 500_000,
        }
    }
}

impl FromStr for Load {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|load| load.name() == name)
            .with_context(|| format!("{name} is no load"))
    }
}

/// A load, where it goes and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// What is done.
    pub load: Load,
    /// The address that is dialled.
    pub to: SocketAddr,
    /// When it ends, after the unit that is under way.
    pub time: Duration,
    /// Where connections come from, one after another.
    pub sources: Sources,
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            load,
            to,
            time,
            sources:
                Sources {
                    first,
                    count,
                    ports,
                },
        } = self;
        let (load, micros) = (load.name(), time.as_micros());
        write!(f, "{load} {to} {micros} {first} {count} {ports}")
    }
}

impl FromStr for Order {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let words: Vec<_> = text.split_whitespace().collect();
        let [load, to, micros, first, count, ports] = words[..] else {
            bail!("no order: {text}");
        };
        Ok(Self {
            load: load.parse()?,
            to: to.parse().with_context(|| format!("no address: {to}"))?,
            time: Duration::from_micros(micros.parse().context("no time")?),
            sources: Sources {
                first: first
                    .parse()
                    .with_context(|| format!("no address: {first}"))?,
                count: count.parse().context("no count")?,
                ports: ports.parse().context("no number of ports")?,
            },
        })
    }
}

/// Ports and addresses of the client that follow each other. The server closes
/// first, so it has each in TIME_WAIT for a minute; the kernel's own choice of
/// ports would come back to one of these after some thousand connections. All
/// ports of one address come before the next address: to who masquerades all
/// addresses are one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sources {
    /// The first address.
    pub first: IpAddr,
    /// How many addresses, at least one; their last byte does not overflow.
    pub count: u8,
    /// How many ports of each, at least one and [`Sources::PORTS`] at most.
    pub ports: u16,
}

impl Sources {
    /// All ports that need no privilege.
    pub const PORTS: u16 = u16::MAX - Self::FIRST_PORT + 1;

    const FIRST_PORT: u16 = 1024;

    /// Where a connection's number comes from.
    pub fn of(&self, number: u64) -> SocketAddr {
        let ports = u64::from(self.ports);
        let port = (number % ports) as u16;
        let step = (number / ports % u64::from(self.count)) as u8;
        let addr = match self.first {
            IpAddr::V4(first) => {
                let [a, b, c, d] = first.octets();
                IpAddr::from([a, b, c, d + step])
            }
            IpAddr::V6(first) => {
                let mut octets = first.octets();
                octets[15] += step;
                IpAddr::from(octets)
            }
        };
        (addr, Self::FIRST_PORT + port).into()
    }
}

/// What an order came to. Every byte that was counted has arrived, and what
/// was looked at was right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Bytes, requests or connections.
    pub count: u64,
    /// From the first byte to the last answer.
    pub time: Duration,
    /// Median of one unit; none of a stream.
    pub median: Option<Duration>,
}

impl Outcome {
    /// Gbit/s of a stream, units a second of the others.
    pub fn rate(&self, load: Load) -> f64 {
        let a_second = self.count as f64 / self.time.as_secs_f64();
        match load {
            Load::Stream => a_second * 8.0 / 1e9,
            Load::Requests | Load::Connections => a_second,
        }
    }
}

const DONE: &str = "done";
const NO_MEDIAN: &str = "-";

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{DONE} {} {} ", self.count, self.time.as_nanos())?;
        match self.median {
            Some(median) => write!(f, "{}", median.as_nanos()),
            None => f.write_str(NO_MEDIAN),
        }
    }
}

impl FromStr for Outcome {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let words: Vec<_> = text.split_whitespace().collect();
        let [DONE, count, nanos, median] = words[..] else {
            bail!("{}", text.trim());
        };
        let nanos_of = |word: &str| word.parse().map(Duration::from_nanos);
        Ok(Self {
            count: count.parse()?,
            time: nanos_of(nanos)?,
            median: (median != NO_MEDIAN)
                .then(|| nanos_of(median))
                .transpose()?,
        })
    }
}

/// The median, by the nearest rank; none of nothing. Orders the samples.
pub fn median(nanos: &mut [u32]) -> Option<Duration> {
    let rank = nanos.len().checked_sub(1)? / 2;
    let (_, median, _) = nanos.select_nth_unstable(rank);
    Some(Duration::from_nanos(u64::from(*median)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_reads_as_it_was_written() {
        for load in Load::ALL {
            for to in ["192.0.2.1:80", "[2001:db8::1]:80"] {
                let order = Order {
                    load,
                    to: to.parse().unwrap(),
                    time: Duration::from_micros(1500),
                    sources: Sources {
                        first: "2001:db8::2".parse().unwrap(),
                        count: 64,
                        ports: 256,
                    },
                };
                assert_eq!(order.to_string().parse::<Order>().unwrap(), order);
            }
        }
    }

    #[test]
    fn what_is_no_order_is_refused() {
        for text in [
            "",
            "stream 192.0.2.1:80 1",
            "walk 192.0.2.1:80 1 192.0.2.2 1 1",
            "stream x 1 192.0.2.2 1 1",
        ] {
            assert!(text.parse::<Order>().is_err(), "{text}");
        }
    }

    #[test]
    fn sources_follow_each_other_and_begin_again() {
        for (first, second) in [("192.0.2.10", "192.0.2.11"), ("2001:db8::a", "2001:db8::b")] {
            let sources = Sources {
                first: first.parse().unwrap(),
                count: 2,
                ports: 3,
            };
            let second: IpAddr = second.parse().unwrap();
            assert_eq!(sources.of(0), (sources.first, 1024).into());
            assert_eq!(sources.of(2), (sources.first, 1026).into());
            assert_eq!(sources.of(3), (second, 1024).into());
            assert_eq!(sources.of(5), (second, 1026).into());
            assert_eq!(sources.of(6), sources.of(0));
        }
        let sources = Sources {
            first: "192.0.2.10".parse().unwrap(),
            count: 1,
            ports: Sources::PORTS,
        };
        assert_eq!(sources.of(u64::from(Sources::PORTS) - 1).port(), u16::MAX);
    }

    #[test]
    fn an_outcome_reads_as_it_was_written() {
        for median in [None, Some(Duration::from_nanos(17_000))] {
            let outcome = Outcome {
                count: 3,
                time: Duration::from_nanos(1_000_000_001),
                median,
            };
            assert_eq!(outcome.to_string().parse::<Outcome>().unwrap(), outcome);
        }
    }

    #[test]
    fn a_failure_is_told_as_it_was_said() {
        let error = "failed: refused\n".parse::<Outcome>().unwrap_err();
        assert_eq!(error.to_string(), "failed: refused");
    }

    #[test]
    fn a_stream_is_counted_in_bits_and_the_rest_in_units() {
        let outcome = Outcome {
            count: 500_000_000,
            time: Duration::from_secs(2),
            median: None,
        };
        assert!((outcome.rate(Load::Stream) - 2.0).abs() < 1e-9);
        assert!((outcome.rate(Load::Requests) - 250e6).abs() < 1.0);
    }

    #[test]
    fn the_median_is_a_sample() {
        let of = |samples: &[u32]| median(&mut samples.to_vec()).map(|time| time.as_nanos());
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[7]), Some(7));
        assert_eq!(of(&[9, 1, 5]), Some(5));
        assert_eq!(of(&[4, 1, 3, 2]), Some(2));
    }
}
