//! What a keeper and its safe say to one another. Both are the same program, so that there is one version of it.

/// From the keeper.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Down {
    #[prost(oneof = "Word", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9")]
    pub(super) word: Option<Word>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum Word {
    #[prost(message, tag = "1")]
    Put(Put),
    #[prost(message, tag = "2")]
    Note(Note),
    #[prost(message, tag = "3")]
    Close(Close),
    /// Nobody will ask for this key again.
    #[prost(uint64, tag = "4")]
    TakeOut(u64),
    /// How did this process end?
    #[prost(uint32, tag = "5")]
    Ask(u32),
    /// That was noted: it may be reaped.
    #[prost(uint32, tag = "6")]
    Reap(u32),
    /// For so many milliseconds leases hold.
    #[prost(message, tag = "7")]
    Hold(Hold),
    /// The keeper has taken over and listens.
    #[prost(bool, tag = "8")]
    Ready(bool),
    /// Everything was ended: end, too.
    #[prost(bool, tag = "9")]
    Farewell(bool),
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Put {
    #[prost(uint64, tag = "1")]
    pub(super) key: u64,
    /// Whose end is to be kept until somebody asks; 0: nobody's.
    #[prost(uint32, tag = "2")]
    pub(super) pid: u32,
    #[prost(bytes = "vec", tag = "3")]
    pub(super) record: Vec<u8>,
    /// How many come with it.
    #[prost(uint32, tag = "4")]
    pub(super) files: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Note {
    #[prost(uint64, tag = "1")]
    pub(super) key: u64,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) note: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct Close {
    #[prost(uint64, tag = "1")]
    pub(super) key: u64,
    #[prost(uint32, tag = "2")]
    pub(super) file: u32,
}

/// Nothing: nothing is held by a lease.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct Hold {
    #[prost(uint64, optional, tag = "1")]
    pub(super) ms: Option<u64>,
}

/// From the safe.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Up {
    #[prost(oneof = "Said", tags = "1, 2, 3, 4")]
    pub(super) said: Option<Said>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum Said {
    /// The first message, with the folder's lock.
    #[prost(message, tag = "1")]
    Begin(Begin),
    #[prost(message, tag = "2")]
    Entry(Kept),
    /// That was all.
    #[prost(bool, tag = "3")]
    Begun(bool),
    #[prost(message, tag = "4")]
    Ended(Ended),
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Begin {
    #[prost(string, tag = "1")]
    pub(super) cookie: String,
    #[prost(uint32, tag = "2")]
    pub(super) generation: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Kept {
    #[prost(uint64, tag = "1")]
    pub(super) key: u64,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) record: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    pub(super) note: Vec<u8>,
    /// One for each file that was put: whether it comes with this.
    #[prost(bool, repeated, tag = "4")]
    pub(super) files: Vec<bool>,
}

/// How a process ended and what it took.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct Ended {
    #[prost(uint32, tag = "1")]
    pub(super) pid: u32,
    /// Nothing: it is not known, or it is not dead.
    #[prost(int32, optional, tag = "2")]
    pub(super) exit: Option<i32>,
    #[prost(int32, optional, tag = "3")]
    pub(super) signal: Option<i32>,
    #[prost(uint64, tag = "4")]
    pub(super) memory_peak: u64,
    #[prost(uint64, tag = "5")]
    pub(super) user_us: u64,
    #[prost(uint64, tag = "6")]
    pub(super) system_us: u64,
    #[prost(uint64, tag = "7")]
    pub(super) read_bytes: u64,
    #[prost(uint64, tag = "8")]
    pub(super) written_bytes: u64,
}
