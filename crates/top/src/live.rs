//! The terminal: keys come in, pictures come in, the screen goes out. And one frame as text, where there is no terminal.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ratatui::{
    DefaultTerminal, Terminal,
    backend::TestBackend,
    crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers},
    layout::Rect,
};
use tokio::sync::{mpsc, watch};

use crate::{
    draw::{Paint, agents_page, draw},
    picture::Picture,
    view::{Key, View},
};

/// How often the thread that reads keys looks whether it is still wanted.
const KEYS_EVERY: Duration = Duration::from_millis(100);

/// What the thread that reads keys saw.
enum Seen {
    Key(Key),
    /// Ctrl-C.
    Interrupt,
    /// The terminal has another size.
    Resized,
}

/// Shows `first` and then pictures as `look` gives them, every `interval`, until the person leaves or this is dropped. The
/// terminal is as it was afterwards, after a panic too.
///
/// # Errors
/// The terminal cannot be used.
pub async fn run<F>(first: Picture, view: View, mut look: F, interval: Duration, colours: bool) -> std::io::Result<()>
where
    F: AsyncFnMut() -> Picture,
{
    let (bring, pictures) = mpsc::channel(1);
    let pause = watch::Sender::new(view.paused);
    let mut paused = pause.subscribe();
    // Beside the screen: no key cuts a look short, however fast they come.
    let looking = async {
        loop {
            tokio::time::sleep(interval).await;
            if paused.wait_for(|paused| !paused).await.is_err() || bring.send(look().await).await.is_err() {
                return;
            }
        }
    };
    // Last, so that it is put back first.
    let terminal = ratatui::try_init()?;
    let _back = Restore;
    let show = Show { terminal, view, picture: first, colours };
    tokio::select! {
        shown = show.until_left(pictures, &pause) => shown,
        () = looking => Ok(()),
    }
}

/// What is on the screen.
struct Show {
    terminal: DefaultTerminal,
    view: View,
    picture: Picture,
    colours: bool,
}

impl Show {
    async fn until_left(
        mut self,
        mut pictures: mpsc::Receiver<Picture>,
        pause: &watch::Sender<bool>,
    ) -> std::io::Result<()> {
        let (mut keys, _reading) = read_keys();
        while !self.view.done {
            let Self { terminal, view, picture, colours } = &mut self;
            terminal.draw(|frame| draw(frame, picture, view, Paint(*colours)))?;
            let area = Rect::from((ratatui::layout::Position::ORIGIN, terminal.size()?));
            tokio::select! {
                seen = keys.recv() => match seen {
                    Some(Seen::Key(key)) => {
                        let count = view.agents(picture).len();
                        view.press(key, count, agents_page(area, count));
                        pause.send_replace(view.paused);
                    }
                    Some(Seen::Resized) => {}
                    Some(Seen::Interrupt) | None => return Ok(()),
                },
                Some(fresh) = pictures.recv() => *picture = fresh,
            }
        }
        Ok(())
    }
}

/// One picture as lines of text.
///
/// # Errors
/// It cannot be drawn.
pub fn frame(picture: &Picture, view: &View, (width, height): (u16, u16)) -> std::io::Result<String> {
    let Ok(mut terminal) = Terminal::new(TestBackend::new(width, height));
    let Ok(_drawn) = terminal.draw(|frame| draw(frame, picture, view, Paint(false)));
    let buffer = terminal.backend().buffer();
    let mut text = String::new();
    for y in 0..height {
        let line: String = (0..width).filter_map(|x| buffer.cell((x, y)).map(|cell| cell.symbol())).collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    Ok(text)
}

struct Restore;

impl Drop for Restore {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// A thread of its own, for the terminal is read by calls that wait.
fn read_keys() -> (mpsc::Receiver<Seen>, Reading) {
    let (tell, keys) = mpsc::channel(16);
    let wanted = Arc::new(AtomicBool::new(true));
    let asked = Arc::clone(&wanted);
    std::thread::spawn(move || {
        while asked.load(Ordering::Relaxed) {
            let seen = match event::poll(KEYS_EVERY) {
                Ok(false) => continue,
                Ok(true) => event::read().ok().and_then(seen),
                Err(_) => return,
            };
            if seen.is_some_and(|seen| tell.blocking_send(seen).is_err()) {
                return;
            }
        }
    });
    (keys, Reading(wanted))
}

/// While this is held, keys are read.
struct Reading(Arc<AtomicBool>);

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

fn seen(event: Event) -> Option<Seen> {
    let key = match event {
        Event::Resize(..) => return Some(Seen::Resized),
        Event::Key(key) if key.kind != KeyEventKind::Release => key,
        _ => return None,
    };
    let key = match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Some(Seen::Interrupt),
        KeyCode::Char(_) if key.modifiers.intersects(KeyModifiers::CONTROL | KeyModifiers::ALT) => return None,
        KeyCode::Char(c) => Key::Char(c),
        KeyCode::Up => Key::Up,
        KeyCode::Down => Key::Down,
        KeyCode::PageUp => Key::PageUp,
        KeyCode::PageDown => Key::PageDown,
        KeyCode::Home => Key::Home,
        KeyCode::End => Key::End,
        KeyCode::Enter => Key::Enter,
        KeyCode::Esc => Key::Escape,
        KeyCode::Backspace => Key::Backspace,
        _ => return None,
    };
    Some(Seen::Key(key))
}
