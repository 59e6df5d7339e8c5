//! Envoy's response flags: why a request ended as it did, in two or three letters.

use std::fmt;

/// Why a request ended as it did. Prints Envoy's letters.
///
/// Source: Envoy's access log, `%RESPONSE_FLAGS%`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Flag {
    /// `UH`: no endpoint may be used.
    NoHealthyUpstream,
    /// `UF`: no connection to the endpoint.
    UpstreamConnectionFailure,
    /// `UO`: a limit of the cluster was reached.
    UpstreamOverflow,
    /// `NR`: no route, or no endpoint group behind it.
    NoRoute,
    /// `UT`: the endpoint or the whole request took too long.
    UpstreamRequestTimeout,
    /// `URX`: it would have been tried again, but not that often.
    UpstreamRetryLimitExceeded,
    /// `UC`: the connection to the endpoint broke.
    UpstreamConnectionTermination,
    /// `UR`: the endpoint reset the stream.
    UpstreamRemoteReset,
    /// `LR`: meshd reset the stream.
    LocalReset,
    /// `DC`: the caller went away.
    DownstreamConnectionTermination,
    /// `DI`: delayed on purpose.
    DelayInjected,
    /// `FI`: refused on purpose.
    FaultInjected,
    /// `DPE`: what the caller sent is not HTTP.
    DownstreamProtocolError,
    /// `UPE`: what the endpoint sent is not HTTP.
    UpstreamProtocolError,
    /// `UMSDR`: the whole stream took too long.
    UpstreamMaxStreamDurationReached,
    /// `SI`: nothing moved for too long.
    StreamIdleTimeout,
    /// `DT`: the request or connection was too old.
    DurationTimeout,
    /// `NC`: the destination is not there.
    NoClusterFound,
    /// `UAEX`: the caller may not.
    UnauthorizedExternalService,
    /// `RL`: too many requests by rule.
    RateLimited,
    /// `OM`: meshd is short of memory or descriptors.
    OverloadManager,
    /// `DF`: the endpoint's name does not resolve.
    DnsResolutionFailed,
}

impl Flag {
    /// All flags, in the order in which they print.
    pub const ALL: [Self; 22] = [
        Self::NoHealthyUpstream,
        Self::UpstreamConnectionFailure,
        Self::UpstreamOverflow,
        Self::NoRoute,
        Self::UpstreamRequestTimeout,
        Self::UpstreamRetryLimitExceeded,
        Self::UpstreamConnectionTermination,
        Self::UpstreamRemoteReset,
        Self::LocalReset,
        Self::DownstreamConnectionTermination,
        Self::DelayInjected,
        Self::FaultInjected,
        Self::DownstreamProtocolError,
        Self::UpstreamProtocolError,
        Self::UpstreamMaxStreamDurationReached,
        Self::StreamIdleTimeout,
        Self::DurationTimeout,
        Self::NoClusterFound,
        Self::UnauthorizedExternalService,
        Self::RateLimited,
        Self::OverloadManager,
        Self::DnsResolutionFailed,
    ];

    /// Returns Envoy's letters.
    pub const fn letters(self) -> &'static str {
        match self {
            Self::NoHealthyUpstream => "UH",
            Self::UpstreamConnectionFailure => "UF",
            Self::UpstreamOverflow => "UO",
            Self::NoRoute => "NR",
            Self::UpstreamRequestTimeout => "UT",
            Self::UpstreamRetryLimitExceeded => "URX",
            Self::UpstreamConnectionTermination => "UC",
            Self::UpstreamRemoteReset => "UR",
            Self::LocalReset => "LR",
            Self::DownstreamConnectionTermination => "DC",
            Self::DelayInjected => "DI",
            Self::FaultInjected => "FI",
            Self::DownstreamProtocolError => "DPE",
            Self::UpstreamProtocolError => "UPE",
            Self::UpstreamMaxStreamDurationReached => "UMSDR",
            Self::StreamIdleTimeout => "SI",
            Self::DurationTimeout => "DT",
            Self::NoClusterFound => "NC",
            Self::UnauthorizedExternalService => "UAEX",
            Self::RateLimited => "RL",
            Self::OverloadManager => "OM",
            Self::DnsResolutionFailed => "DF",
        }
    }
}

impl fmt::Display for Flag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.letters())
    }
}

/// Several flags of one request (`DI,URX`). Prints `-` when there is none, as Envoy does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Flags(u32);

impl Flags {
    /// None.
    pub const NONE: Self = Self(0);

    /// Adds a flag.
    pub fn set(&mut self, flag: Flag) {
        self.0 |= 1 << flag as u8;
    }

    /// Whether a flag is set.
    pub const fn has(self, flag: Flag) -> bool {
        self.0 & (1 << flag as u8) != 0
    }

    /// Whether none is set.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Returns the flags that are set, in printing order.
    pub fn iter(self) -> impl Iterator<Item = Flag> {
        Flag::ALL.into_iter().filter(move |flag| self.has(*flag))
    }
}

impl From<Flag> for Flags {
    fn from(flag: Flag) -> Self {
        Self(1 << flag as u8)
    }
}

impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("-");
        }
        for (position, flag) in self.iter().enumerate() {
            let comma = if position == 0 { "" } else { "," };
            write!(f, "{comma}{flag}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_print_as_in_envoys_access_log() {
        let mut flags = Flags::default();
        assert_eq!(flags.to_string(), "-");
        flags.set(Flag::DelayInjected);
        flags.set(Flag::UpstreamRetryLimitExceeded);
        assert_eq!(flags.to_string(), "URX,DI");
        assert_eq!(Flags::from(Flag::NoHealthyUpstream).to_string(), "UH");
    }

    #[test]
    fn every_flag_has_a_bit_and_letters_of_its_own() {
        for (position, flag) in Flag::ALL.into_iter().enumerate() {
            assert_eq!(flag as usize, position, "{flag}");
            let same = Flag::ALL.into_iter().filter(|other| other.letters() == flag.letters()).count();
            assert_eq!(same, 1, "{flag}");
        }
    }
}
